"""Stopping and going on, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, ForwardBackward, LoraSpec

from .conftest import MakeDatum, MakeTrainer

TrainStep = Callable[[LoraTrainer, int], None]

SPEC = LoraSpec(4, alpha=16.0, seed=3, train_mlp=False)


@pytest.fixture
def train(make_datum: MakeDatum) -> TrainStep:
    def one_step(trainer: LoraTrainer, seed: int) -> None:
        trainer.forward_backward([ForwardBackward("a", (make_datum(seed, 11),), "cross_entropy")])
        trainer.optim_step("a", AdamParams(1e-2, grad_clip_norm=1.0))

    return one_step


def test_saving_loading_and_stepping_is_bitwise_as_if_never_stopped(
    make_trainer: MakeTrainer, train: TrainStep, tmp_path: Path
) -> None:
    going_on, resumed = make_trainer(a=SPEC), make_trainer()
    for seed in range(3):
        train(going_on, seed)
    going_on.save_state("a", tmp_path)
    assert resumed.load_state("a", tmp_path, with_optimizer=True) == SPEC
    for trainer in (going_on, resumed):
        train(trainer, 3)
        train(trainer, 4)
    assert torch.equal(resumed.adapter("a").weights, going_on.adapter("a").weights)
    assert torch.equal(resumed.adapter("a").exp_avg_sq, going_on.adapter("a").exp_avg_sq)
    assert resumed.adapter("a").step == 5


def test_loading_without_optimizer_takes_weights_only(
    make_trainer: MakeTrainer, train: TrainStep, tmp_path: Path
) -> None:
    trainer = make_trainer(a=SPEC)
    train(trainer, 0)
    trainer.save_state("a", tmp_path)
    saved = trainer.adapter("a").weights.clone()
    trainer.load_state("b", tmp_path, with_optimizer=False)
    adapter = trainer.adapter("b")
    assert torch.equal(adapter.weights, saved)
    assert adapter.step == 0
    assert not adapter.exp_avg.any()
    assert not adapter.exp_avg_sq.any()


def test_loading_over_an_adapter_of_another_shape_replaces_it_and_its_gradient(
    make_trainer: MakeTrainer, make_datum: MakeDatum, tmp_path: Path
) -> None:
    trainer = make_trainer(a=SPEC, b=LoraSpec(2))
    trainer.save_state("a", tmp_path)
    trainer.forward_backward([ForwardBackward("b", (make_datum(0, 5),), "cross_entropy")])
    trainer.load_state("b", tmp_path, with_optimizer=True)
    assert torch.equal(trainer.adapter("b").weights, trainer.adapter("a").weights)
    assert not trainer.adapter("b").grad.any()


def test_the_peft_folder_names_rank_alpha_base_and_modules(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(a=LoraSpec(4)).export_adapter("a", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 32.0)
    assert config["base_model_name_or_path"] == "test/base"
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "lm_head",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].shape == (4, 32)
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (67, 4)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_folder_without_state_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(a=SPEC)
    trainer.export_adapter("a", tmp_path)
    with pytest.raises(InvalidInput, match="no training state"):
        trainer.load_state("a", tmp_path, with_optimizer=True)


def test_a_damaged_file_is_refused_and_leaves_the_adapter(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(a=SPEC)
    trainer.save_state("a", tmp_path)
    (tmp_path / "exp_avg.safetensors").write_bytes(b"not a tensor file")
    before = trainer.adapter("a")
    with pytest.raises(InvalidInput, match=r"exp_avg\.safetensors is missing or damaged"):
        trainer.load_state("a", tmp_path, with_optimizer=True)
    assert trainer.adapter("a") is before


def test_a_checkpoint_of_another_shape_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(a=SPEC)
    trainer.save_state("a", tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    state["lora"]["rank"] = 8
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(InvalidInput, match="another shape"):
        trainer.load_state("a", tmp_path, with_optimizer=True)
