"""Adapters of experts and of vision-language models in the cookbook's conversion and merge, and their size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft import PeftModel
from tinker_cookbook.hyperparam_utils import get_lora_param_count
from tinker_cookbook.weights import build_hf_model, build_lora_adapter
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tinsmith_train.engine.model import prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, ForwardBackwardResult, LoraSpec
from tinsmith_train.services.exports import finish_export

VOCAB = 67
SIZES: Any = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "initializer_range": 0.1,
}
SPECS = {"whole": LoraSpec(4), "experts": LoraSpec(3, alpha=9.0, train_attn=False, train_unembed=False)}

QWEN3_30B: Any = {  # the configuration class does not declare head_dim
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
}
SHAPES: dict[str, Any] = {
    "meta-llama/Llama-3.1-8B": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "Qwen/Qwen3-8B": Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=151936,
    ),
    "Qwen/Qwen3-30B-A3B": Qwen3MoeConfig(**QWEN3_30B),
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base_folder: Path) -> LoraTrainer:
    """Two adapters after a step, in which their tokens met in the same experts."""
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    trainer = LoraTrainer(prepare_base_model("test/base", base))
    for number, (name, spec) in enumerate(SPECS.items()):
        trainer.create_adapter(name, spec)
        trainer.adapter(name).weights.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    trainer.forward_backward(
        [ForwardBackward(name, (datum(10), datum(11)), "cross_entropy") for name in SPECS]
    )
    for name in SPECS:
        trainer.optim_step(name, AdamParams(1e-2))
    return trainer


def datum(seed: int) -> Datum:
    rng = np.random.default_rng(seed)
    return Datum(rng.integers(0, VOCAB, 30), rng.integers(0, VOCAB, 30))


def ours(trainer: LoraTrainer, name: str) -> NDArray[np.float32]:
    (result,) = trainer.forward_backward(
        [ForwardBackward(name, (datum(0),), "cross_entropy", forward_only=True)]
    )
    assert isinstance(result, ForwardBackwardResult), result
    return result.logprobs[0]


def theirs(model: Any) -> NDArray[np.float32]:
    tokens, targets = torch.from_numpy(datum(0).tokens), torch.from_numpy(datum(0).targets)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    return F.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0].detach().numpy()


def export(trainer: LoraTrainer, name: str, folder: Path) -> str:
    """As a download of the checkpoint holds it."""
    folder.mkdir()
    trainer.export_adapter(name, folder)
    finish_export(folder, ())
    return str(folder)


@pytest.mark.parametrize("name", SPECS)
def test_the_cookbooks_conversion_of_experts_gives_our_logprobs_in_peft(
    name: str, trained: LoraTrainer, base_folder: Path, tmp_path: Path
) -> None:
    """Converted factors are two-dimensional, one for each expert, as PEFT and serving engines have them."""
    raw = export(trained, name, tmp_path / "ours")
    build_lora_adapter(base_model=str(base_folder), adapter_path=raw, output_path=str(tmp_path / "peft"))
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    plain = theirs(base)
    model = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    np.testing.assert_allclose(ours(trained, name), theirs(model), atol=3e-5)
    assert np.abs(ours(trained, name) - plain).max() > 1e-2


def test_the_cookbooks_merge_of_experts_gives_our_logprobs(
    trained: LoraTrainer, base_folder: Path, tmp_path: Path
) -> None:
    raw, merged = export(trained, "whole", tmp_path / "ours"), str(tmp_path / "merged")
    build_hf_model(base_model=str(base_folder), adapter_path=raw, output_path=merged, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    np.testing.assert_allclose(ours(trained, "whole"), theirs(model), atol=3e-5)


def test_the_cookbooks_merge_of_a_vision_language_model_gives_our_logprobs(tmp_path: Path) -> None:
    text: Any = {
        **SIZES,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    tower: Any = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
    }
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=tower))
    model.save_pretrained(tmp_path / "base")
    trainer = LoraTrainer(prepare_base_model("test/vl", model))
    trainer.create_adapter("whole", SPECS["whole"])
    trainer.adapter("whole").weights.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    raw, merged = export(trainer, "whole", tmp_path / "ours"), str(tmp_path / "merged")
    build_hf_model(base_model=str(tmp_path / "base"), adapter_path=raw, output_path=merged, dtype="float32")
    other = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32)
    np.testing.assert_allclose(ours(trainer, "whole"), theirs(other), atol=3e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_an_adapter_has_as_many_parameters_as_at_the_hosted_service(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name])
    targets = prepare_base_model(name, model).targets
    for group in ("attn", "mlp", "unembed"):
        switches = {f"train_{other}": other == group for other in ("attn", "mlp", "unembed")}
        count = sum(sum(target.sizes(8)) for target in targets if target.group == group)
        assert count == get_lora_param_count(name, lora_rank=8, **switches)
