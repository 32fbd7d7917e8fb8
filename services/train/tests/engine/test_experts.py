"""Stacks of experts: what an adapter of them holds, and that it goes on where it was saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, ForwardBackward

from .conftest import MakeDatum
from .test_families import make_batch, make_trainer, run


@pytest.fixture
def trained(make_datum: MakeDatum) -> LoraTrainer:
    """Adapters after a step, in which tokens of three of them met in the same experts."""
    trainer = make_trainer("qwen3_moe")
    run(trainer, make_batch(make_datum))
    for name in "abc":
        trainer.optim_step(name, AdamParams(1e-2))
    return trainer


def test_a_stack_of_experts_shares_the_factor_at_the_hidden_state(
    trained: LoraTrainer, tmp_path: Path
) -> None:
    trained.export_adapter("a", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {
        name.removeprefix("base_model.model.model.layers.1.mlp.experts."): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if "layers.1.mlp" in name
    }
    assert shapes == {
        "w1.lora_A.weight": (1, 4, 64),
        "w1.lora_B.weight": (6, 32, 4),
        "w2.lora_A.weight": (6, 4, 32),
        "w2.lora_B.weight": (1, 64, 4),
        "w3.lora_A.weight": (1, 4, 64),
        "w3.lora_B.weight": (6, 32, 4),
    }


def test_a_resumed_adapter_of_experts_steps_as_if_never_stopped(
    trained: LoraTrainer, make_datum: MakeDatum, tmp_path: Path
) -> None:
    resumed = make_trainer("qwen3_moe")
    trained.save_state("a", tmp_path)
    resumed.load_state("a", tmp_path, with_optimizer=True)
    for trainer in (trained, resumed):
        run(trainer, make_batch(make_datum)[:1])
        trainer.optim_step("a", AdamParams(1e-2))
    assert torch.equal(trained.adapter("a").weights, resumed.adapter("a").weights)


def test_an_expert_that_no_token_chose_keeps_its_weights(make_datum: MakeDatum) -> None:
    trainer = make_trainer("qwen3_moe")
    before = trainer.adapter("a").weights.clone()
    run(trainer, [ForwardBackward("a", (make_datum(0, 1),), "cross_entropy")])
    pair = trainer.adapter("a").pairs["model.layers.0.mlp.experts.w1"]
    assert pair.b.grad is not None
    assert [bool(grad.any()) for grad in pair.b.grad].count(True) == 2  # one token, two experts
    trainer.optim_step("a", AdamParams(1e-2))
    assert not torch.equal(trainer.adapter("a").weights, before)
