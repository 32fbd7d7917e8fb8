"""Sections 7.10 and 7.11: the adapter and its optimizer, by torch autograd and by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tinker_cookbook import weights

from tests.conformance import reference
from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
RANK = 4


@pytest.fixture
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", stack.base_url)
    monkeypatch.setenv("TINKER_API_KEY", stack.api_key)


def exported(trainer: tinker.TrainingClient, name: str, folder: Path) -> dict[str, torch.Tensor]:
    """A and B of every layer, as a user gets them."""
    path = trainer.save_weights_external(name).result().path
    weights.download(tinker_path=path, output_dir=str(folder / name))
    return load_file(folder / name / "adapter_model.safetensors")


def gradients(tensors: dict[str, torch.Tensor], data: list[tinker.Datum]) -> dict[str, torch.Tensor]:
    """Of the summed cross entropy with respect to A and B, by peft and autograd; scale 32 / r."""
    names = [name.split(".")[-3] for name in tensors]
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules=sorted(set(names)), task_type="CAUSAL_LM")
    model: Any = get_peft_model(reference.base_model(), config)
    parameters = {
        name.replace(".default.", "."): value for name, value in model.named_parameters() if "lora_" in name
    }
    assert parameters.keys() == tensors.keys()
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[name])
    for datum in data:
        scores = reference.next_logprobs(model, datum.model_input.to_ints())
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        (-scores.gather(1, targets[:, None]).sum()).backward()
    return {name: value.grad for name, value in parameters.items()}


def adamw(
    theta: torch.Tensor, moments: list[torch.Tensor], grad: torch.Tensor, t: int, p: tinker.AdamParams
) -> torch.Tensor:
    """Step `t` as section 7.10 writes it; `moments` are m and v."""
    moments[0] = p.beta1 * moments[0] + (1 - p.beta1) * grad
    moments[1] = p.beta2 * moments[1] + (1 - p.beta2) * grad**2
    m, v = moments[0] / (1 - p.beta1**t), moments[1] / (1 - p.beta2**t)
    return theta - p.learning_rate * (m / (v.sqrt() + p.eps) + p.weight_decay * theta)


STEPS = [
    # No decay and no clipping, then both, with all parameters changed between the steps.
    tinker.AdamParams(learning_rate=1e-2, eps=1e-2),
    tinker.AdamParams(
        learning_rate=5e-3, beta1=0.8, beta2=0.9, eps=2e-2, weight_decay=0.1, grad_clip_norm=1.0
    ),
]


@pytest.mark.usefixtures("environment")
@pytest.mark.row(
    "adamw", "grad-clip", "optim-step", "lora-scale", "forward-backward", call="optim_step(AdamParams)"
)
def test_two_steps_are_those_of_autograd_and_adamw_by_hand(service: tinker.ServiceClient, out: Path) -> None:
    trainer = service.create_lora_training_client(MODEL, rank=RANK, seed=2, train_unembed=False).result()
    data = [supervised(some_tokens(seed, 12)) for seed in (1, 2)]
    theta = exported(trainer, "zero", out)
    assert all(not value.any() for name, value in theta.items() if "lora_B" in name), "B begins at zero"
    moments = {name: [torch.zeros_like(value), torch.zeros_like(value)] for name, value in theta.items()}
    for t, params in enumerate(STEPS, start=1):
        trainer.forward_backward(data, "cross_entropy").result()
        metrics = trainer.optim_step(params).result().metrics or {}
        grads = gradients(theta, data)
        norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        clip = params.grad_clip_norm
        assert not clip or norm > 2 * clip, "the gradient is not clipped, so this would show nothing"
        factor = min(1.0, clip / norm) if clip else 1.0
        theta = {
            name: adamw(value, moments[name], grads[name] * factor, t, params)
            for name, value in theta.items()
        }
        ours = exported(trainer, f"step-{t}", out)
        # A step moves a weight by up to 1e-2; gradients of size 1 agree within 1e-5 and are divided by eps.
        for name, value in theta.items():
            np.testing.assert_allclose(ours[name].numpy(), value.numpy(), atol=2e-5, err_msg=name)
        theta = ours


@pytest.mark.row("lora-scale", call="create_lora_training_client, forward")
def test_a_fresh_adapter_changes_nothing(service: tinker.ServiceClient) -> None:
    trainer = service.create_lora_training_client(MODEL, rank=16).result()
    datum = supervised(some_tokens(4))
    ours = logprobs_of(trainer.forward([datum], "cross_entropy").result())[0]
    with torch.no_grad():
        scores = reference.next_logprobs(reference.base_model(), datum.model_input.to_ints())
    base = scores.gather(1, datum.loss_fn_inputs["target_tokens"].to_torch()[:, None])[:, 0]
    np.testing.assert_allclose(ours, base.numpy(), atol=2e-4)


@pytest.mark.row("lora-seed", call="create_lora_training_client(seed=)")
def test_a_seed_makes_two_adapters_alike_and_another_seed_does_not(service: tinker.ServiceClient) -> None:
    def after_one_step(seed: int) -> np.ndarray:
        trainer = service.create_lora_training_client(MODEL, rank=RANK, seed=seed).result()
        data = [supervised(some_tokens(1))]
        trainer.forward_backward(data, "cross_entropy").result()
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
        return logprobs_of(trainer.forward(data, "cross_entropy").result())[0]

    first, again, other = after_one_step(1), after_one_step(1), after_one_step(2)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.row("step-without-gradient", call="optim_step on a new model")
def test_a_step_without_a_gradient_succeeds_and_moves_nothing(trainer: tinker.TrainingClient) -> None:
    data = [supervised(some_tokens(1))]
    before = logprobs_of(trainer.forward(data, "cross_entropy").result())[0]
    metrics = trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result().metrics or {}
    assert metrics["grad_norm"] == 0
    after = logprobs_of(trainer.forward(data, "cross_entropy").result())[0]
    np.testing.assert_array_equal(before, after)
