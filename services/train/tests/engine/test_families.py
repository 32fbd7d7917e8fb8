"""Every row of the table of architectures, on a small random model, against Hugging Face's own forward and autograd.

The reference runs the whole causal language model with its eager attention, one unpadded sequence at a time, on
weights `W + scale B A` whose factors are autograd leaves. All in fp32; bounds are on sums of some hundred products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tinsmith_common.errors import EngineFailure
from tinsmith_train.engine.adapters import LoraTarget
from tinsmith_train.engine.families import FAMILIES
from tinsmith_train.engine.lora import LoraLinear
from tinsmith_train.engine.model import prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, ForwardBackwardResult, LoraSpec

from .conftest import VOCAB, MakeDatum

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Shorter windows than the longest sequence, and caps and factors that bite."""
WINDOW = {"sliding_window": 8}
BOTH_KINDS = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OPTIONS: Mapping[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, **BOTH_KINDS},
    "exaone4": BOTH_KINDS,
    "gemma2": {**BOTH_KINDS, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**BOTH_KINDS, "final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "ministral": BOTH_KINDS,
    "mistral": WINDOW,
    "mixtral": EXPERTS,
    "olmo3": BOTH_KINDS,
    "olmoe": EXPERTS,
    "phi3": WINDOW,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**EXPERTS, "norm_topk_prob": True},
    "starcoder2": WINDOW,
}
TIED = ("gemma", "gemma2", "gemma3_text", "llama", "qwen2", "qwen3", "qwen3_moe")
TEXT = [kind for kind, family in FAMILIES.items() if not family.images]
CASES = [*((kind, False) for kind in TEXT), *((kind, True) for kind in TIED)]
families = pytest.mark.parametrize(
    ("kind", "tied"), CASES, ids=[f"{kind}{' tied' * tied}" for kind, tied in CASES]
)
SPECS = {
    "a": LoraSpec(4, seed=1),
    "b": LoraSpec(3, alpha=9.0, seed=2, train_unembed=False),
    "c": LoraSpec(2, seed=3, train_mlp=False),
}
LENGTHS = {"a": (9, 4, 30), "b": (1, 17), "c": (12, 12)}


def make_config(kind: str, **options: Any) -> Any:
    factory: Any = CONFIG_MAPPING[kind]
    return factory(**options)


def make_causal_lm(kind: str, tied: bool = False) -> Any:
    options = {**SIZES, **OPTIONS.get(kind, {}), "tie_word_embeddings": tied}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        make_config(kind, **options), attn_implementation="eager"
    ).eval()
    for name, parameter in model.named_parameters():  # norms and biases that are 1 or 0 would hide mistakes
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "gemma" not in kind), std=0.1)
    return model


def make_trainer(kind: str, tied: bool = False) -> LoraTrainer:
    trainer = LoraTrainer(prepare_base_model("test/base", make_causal_lm(kind, tied)))
    for number, (name, spec) in enumerate(SPECS.items()):
        trainer.create_adapter(name, spec)
        trainer.adapter(name).weights.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    return trainer


def make_batch(make_datum: MakeDatum) -> list[ForwardBackward]:
    return [
        ForwardBackward(name, tuple(make_datum(10 * number + n, n) for n in lengths), "cross_entropy")
        for number, (name, lengths) in enumerate(LENGTHS.items())
    ]


def run(trainer: LoraTrainer, batch: Sequence[ForwardBackward]) -> list[ForwardBackwardResult]:
    results = trainer.forward_backward(batch)
    good = [result for result in results if isinstance(result, ForwardBackwardResult)]
    assert len(good) == len(batch), results
    return good


class Reference:
    """One adapter of a trainer on a model of its own, as leaves for autograd."""

    def __init__(self, model: Any, trainer: LoraTrainer, name: str) -> None:
        adapter = trainer.adapter(name)
        self._model, self._scale = model, adapter.spec.alpha / adapter.spec.rank
        self._targets = adapter.targets
        self.leaves = {
            path: tuple(side.detach().clone().requires_grad_() for side in (pair.a, pair.b))
            for path, pair in adapter.pairs.items()
        }

    def logprobs(self, datum: Datum) -> Tensor:
        inputs = {**self.inputs(datum), "use_cache": False}
        output: Any = functional_call(self._model, self._weights(), kwargs=inputs, tie_weights=False)
        log_softmax = F.log_softmax(output.logits[0], dim=-1)
        return log_softmax.gather(1, torch.from_numpy(datum.targets)[:, None])[:, 0]

    def inputs(self, datum: Datum) -> dict[str, Tensor]:
        return {"input_ids": torch.from_numpy(datum.tokens)[None]}

    def backward(self, datums: Sequence[Datum]) -> None:
        terms = [self.logprobs(datum) * torch.from_numpy(datum.inputs["weights"]) for datum in datums]
        (-torch.cat(terms).sum()).backward()

    def _weights(self) -> dict[str, Tensor]:
        base: dict[str, Tensor] = dict(self._model.named_parameters(remove_duplicate=False))
        weights: dict[str, Tensor] = {}
        for target in self._targets:
            a, b = self.leaves[target.path]
            name, rows = _place(target)
            whole = weights.get(name, base[name])
            part = whole if rows is None else whole.unflatten(1, (2, -1))[:, rows]
            part = part + self._scale * (b @ a)
            if rows is not None:
                halves = list(whole.unflatten(1, (2, -1)).unbind(1))
                halves[rows] = part
                part = torch.cat(halves, dim=1)
            weights[name] = part
        return weights


def _place(target: LoraTarget) -> tuple[str, int | None]:
    """The parameter that a target changes, and which half of its rows if not all."""
    experts, _, leaf = target.path.rpartition(".")
    if target.a_stack is None:
        return f"{target.path}.weight", None
    return {
        "w1": (f"{experts}.gate_up_proj", 0),
        "w3": (f"{experts}.gate_up_proj", 1),
        "w2": (f"{experts}.down_proj", None),
    }[leaf]


def assert_equals(
    reference: Reference, trainer: LoraTrainer, item: ForwardBackward, result: ForwardBackwardResult
) -> None:
    """Logprobs of a submission, and the gradients that its adapter got of it alone."""
    for datum, logprobs in zip(item.datums, result.logprobs, strict=True):
        np.testing.assert_allclose(logprobs, reference.logprobs(datum).detach(), atol=1e-4)
    reference.backward(item.datums)
    for path, pair in trainer.adapter(item.adapter_id).pairs.items():
        for ours, leaf in zip((pair.a, pair.b), reference.leaves[path], strict=True):
            assert leaf.grad is not None
            assert ours.grad is not None
            scale = max(1.0, leaf.grad.abs().max().item())
            torch.testing.assert_close(ours.grad, leaf.grad, rtol=0, atol=1e-4 * scale)


@families
def test_logprobs_and_gradients_of_a_mixed_batch_equal_autograd(
    kind: str, tied: bool, make_datum: MakeDatum
) -> None:
    trainer, model = make_trainer(kind, tied), make_causal_lm(kind, tied)
    batch = make_batch(make_datum)
    for item, result in zip(batch, run(trainer, batch), strict=True):
        reference = Reference(model, trainer, item.adapter_id)
        assert_equals(reference, trainer, item, result)


@families
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_after_a_step_the_export_gives_our_logprobs_in_peft(
    kind: str, tied: bool, make_datum: MakeDatum, tmp_path: Path
) -> None:
    if FAMILIES[kind].experts is not None:
        pytest.skip(
            "adapters of experts go through the cookbook's conversion: tests/test_cookbook_weights.py"
        )
    trainer, model = make_trainer(kind, tied), make_causal_lm(kind, tied)
    batch = make_batch(make_datum)
    run(trainer, batch)
    trainer.optim_step("a", AdamParams(1e-2))
    (result, *_) = run(trainer, [replace(item, forward_only=True) for item in batch])
    trainer.export_adapter("a", tmp_path)
    peft: Any = PeftModel.from_pretrained(model, str(tmp_path))
    for datum, logprobs in zip(batch[0].datums, result.logprobs, strict=True):
        logits = peft(input_ids=torch.from_numpy(datum.tokens)[None], use_cache=False).logits[0]
        wanted = F.log_softmax(logits, dim=-1).gather(1, torch.from_numpy(datum.targets)[:, None])[:, 0]
        np.testing.assert_allclose(logprobs, wanted.detach(), atol=1e-4)


@pytest.mark.parametrize("kind", TEXT)
def test_every_linear_layer_is_trained_or_listed_as_frozen(kind: str) -> None:
    model = make_causal_lm(kind)
    base = prepare_base_model("test/base", model)
    wrapped = {target.path for target in base.targets}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            owner = path.removesuffix(".base")
            frozen = any(owner.endswith(f".{name}") for name in FAMILIES[kind].frozen)
            assert (owner in wrapped) != frozen, path
    assert all(
        isinstance(model.get_submodule(target.path), LoraLinear)
        for target in base.targets
        if target.group != "unembed" and target.a_stack is None
    )


def test_an_architecture_outside_of_the_table_is_refused_with_what_is_supported() -> None:
    config = make_config("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=VOCAB)
    with pytest.raises(EngineFailure, match=r"architecture 'gpt2'.*use one of .*llama.*qwen3_moe"):
        prepare_base_model("test/base", AutoModelForCausalLM.from_config(config))


def test_rotary_embeddings_that_change_with_the_batch_are_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = make_config("llama", **SIZES, rope_parameters=rope)
    with pytest.raises(EngineFailure, match="'dynamic' rotary embeddings"):
        prepare_base_model("test/base", AutoModelForCausalLM.from_config(config))


def test_bidirectional_attention_is_refused() -> None:
    config = make_config("gemma3_text", **SIZES, use_bidirectional_attention=True)
    with pytest.raises(EngineFailure, match="'use_bidirectional_attention'"):
        prepare_base_model("test/base", AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("kind", ["cohere2", "gemma3_text", "olmo3", "phi3"])
def test_an_adapter_gets_the_bits_it_gets_alone(kind: str, make_datum: MakeDatum) -> None:
    """Of families that do something else than Qwen3, on which `test_exactness.py` runs."""
    together = make_trainer(kind)
    batch = make_batch(make_datum)
    for item, among in zip(batch, run(together, batch), strict=True):
        trainer = make_trainer(kind)
        (alone,) = run(trainer, [item])
        for mine, theirs in zip(among.logprobs, alone.logprobs, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        grad = trainer.adapter(item.adapter_id).grad
        assert grad.abs().max() > 1e-3
        assert torch.equal(together.adapter(item.adapter_id).grad, grad)
