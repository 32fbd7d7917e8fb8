"""Full fine-tuning (rank 0) against Hugging Face, autograd and `torch.optim.AdamW` on the same model, in fp32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.model import prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, LoraSpec, TrainerLimits

from .conftest import MakeDatum
from .test_families import make_causal_lm, run

FULL, LORA = LoraSpec(0), LoraSpec(4, seed=1)
KINDS = [("qwen3", False), ("qwen3", True), ("gemma2", True), ("qwen3_moe", False)]
kinds = pytest.mark.parametrize(
    ("kind", "tied"), KINDS, ids=[f"{kind}{' tied' * tied}" for kind, tied in KINDS]
)


def make_trainer(kind: str = "qwen3", tied: bool = False, full_models: int = 2) -> LoraTrainer:
    limits = TrainerLimits(full_models=full_models, logits_chunk_mib=0)
    return LoraTrainer(prepare_base_model("test/base", make_causal_lm(kind, tied)), limits)


def submit(name: str, *datums: Datum, look: bool = False) -> ForwardBackward:
    return ForwardBackward(name, datums, "cross_entropy", forward_only=look)


def logprobs(model: Any, datum: Datum) -> torch.Tensor:
    logits = model(input_ids=torch.from_numpy(datum.tokens)[None], use_cache=False).logits[0]
    return F.log_softmax(logits, -1).gather(1, torch.from_numpy(datum.targets)[:, None])[:, 0]


@kinds
def test_steps_of_all_weights_equal_autograd_and_torch_adamw(
    kind: str, tied: bool, make_datum: MakeDatum
) -> None:
    """A LoRA tenant and a second full model share the calls and move nothing."""
    trainer, model = make_trainer(kind, tied), make_causal_lm(kind, tied)
    for name, spec in (("full", FULL), ("lora", LORA), ("other", FULL)):
        trainer.create_adapter(name, spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(3):
        datums = make_datum(step, 30), make_datum(10 + step, 7)
        optimizer.zero_grad()
        wanted = [logprobs(model, datum) for datum in datums]
        terms = [x * torch.from_numpy(d.inputs["weights"]) for x, d in zip(wanted, datums, strict=True)]
        (-torch.cat(terms).sum()).backward()
        optimizer.step()
        batch = [
            submit("lora", make_datum(50, 9)),
            submit("full", *datums),
            submit("other", make_datum(51, 5)),
        ]
        result = run(trainer, batch)[1]
        for mine, theirs in zip(result.logprobs, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs.detach(), atol=1e-4)
        trainer.optim_step("full", AdamParams(1e-3, eps=1e-8, weight_decay=0.1))
    full = trainer.adapter("full")
    ours, theirs = full.named(full.weights), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        # A step moves a weight by about 1e-3; where the gradient is all rounding its sign is too.
        error = (ours[name].detach() - parameter.detach()).abs()
        assert error.mean() < 1e-5, name
        assert error.max() < 7e-3, name


def test_gradients_of_all_weights_equal_autograd(make_datum: MakeDatum) -> None:
    trainer, model = make_trainer(), make_causal_lm("qwen3")
    trainer.create_adapter("full", FULL)
    datum = make_datum(0, 30)
    (-(logprobs(model, datum) * torch.from_numpy(datum.inputs["weights"])).sum()).backward()
    run(trainer, [submit("full", datum)])
    full = trainer.adapter("full")
    for name, parameter in model.named_parameters():
        scale = max(1.0, parameter.grad.abs().max().item())
        torch.testing.assert_close(full.named(full.grad)[name], parameter.grad, rtol=0, atol=1e-4 * scale)


@kinds
def test_the_export_is_a_folder_that_hugging_face_loads(
    kind: str, tied: bool, make_datum: MakeDatum, tmp_path: Path
) -> None:
    trainer, datum = make_trainer(kind, tied), make_datum(0, 30)
    trainer.create_adapter("full", FULL)
    run(trainer, [submit("full", datum)])
    trainer.optim_step("full", AdamParams(1e-2))
    (result,) = run(trainer, [submit("full", datum, look=True)])
    trainer.export_adapter("full", tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    np.testing.assert_allclose(result.logprobs[0], logprobs(model, datum).detach(), atol=1e-4)
    assert (
        np.abs(result.logprobs[0] - logprobs(make_causal_lm(kind, tied), datum).detach().numpy()).max() > 0.1
    )


def test_saving_loading_and_stepping_is_bitwise_as_if_never_stopped(
    make_datum: MakeDatum, tmp_path: Path
) -> None:
    going_on, resumed = make_trainer(), make_trainer()
    going_on.create_adapter("full", FULL)
    run(going_on, [submit("full", make_datum(0, 30))])
    going_on.optim_step("full", AdamParams(1e-2))
    going_on.save_state("full", tmp_path)
    assert resumed.load_state("full", tmp_path, with_optimizer=True) == FULL
    for trainer in (going_on, resumed):
        run(trainer, [submit("full", make_datum(1, 20))])
        trainer.optim_step("full", AdamParams(1e-2))
    assert torch.equal(going_on.adapter("full").weights, resumed.adapter("full").weights)
    assert torch.equal(going_on.adapter("full").exp_avg_sq, resumed.adapter("full").exp_avg_sq)


def test_training_all_weights_leaves_the_base_model_as_it_is(make_datum: MakeDatum) -> None:
    trainer, datum = make_trainer(), make_datum(0, 30)
    trainer.create_adapter("lora", LORA)
    trainer.create_adapter("full", FULL)
    before = run(trainer, [submit("lora", datum, look=True)])[0].logprobs[0]
    run(trainer, [submit("full", datum)])
    trainer.optim_step("full", AdamParams(1e-1))
    np.testing.assert_array_equal(run(trainer, [submit("lora", datum, look=True)])[0].logprobs[0], before)


def test_rank_0_is_refused_unless_switched_on_and_beyond_its_limit() -> None:
    with pytest.raises(InvalidInput, match=r"is off here.*FULL_FINE_TUNE_MODELS raised over 0.*GiB"):
        make_trainer(full_models=0).create_adapter("full", FULL)
    trainer = make_trainer(full_models=1)
    trainer.create_adapter("full", FULL)
    trainer.create_adapter("full", FULL)  # replaces itself
    with pytest.raises(InvalidInput, match="taken by 1 other model:"):
        trainer.create_adapter("second", FULL)
    trainer.delete_adapter("full")
    trainer.create_adapter("second", FULL)


def test_rank_0_with_a_switch_off_is_refused() -> None:
    with pytest.raises(InvalidInput, match="rank 0 trains all weights"):
        make_trainer().create_adapter("full", LoraSpec(0, train_mlp=False))
