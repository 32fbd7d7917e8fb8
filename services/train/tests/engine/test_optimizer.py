"""AdamW on a flat buffer against torch's own, with parameters that change at each step."""

import pytest
import torch

from tinsmith_common.errors import EngineFailure
from tinsmith_train.engine import optimizer as optimizer_module
from tinsmith_train.engine.optimizer import adamw_step
from tinsmith_train.engine.types import AdamParams

STEPS = (
    AdamParams(1e-2),
    AdamParams(3e-3, beta1=0.8, beta2=0.99, eps=1e-8),
    AdamParams(1e-1, weight_decay=0.1),
    AdamParams(1e-2, grad_clip_norm=0.5),
    AdamParams(1e-2, grad_clip_norm=1e6),
    AdamParams(0.0),
)


@pytest.fixture(params=["_apply", "_apply_in_one_pass"])
def apply(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to apply a step; torch has the kernel of GPUs for CPUs too."""
    monkeypatch.setattr(optimizer_module, "_apply", getattr(optimizer_module, request.param))


def zeros() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(50), torch.zeros(50)


@pytest.mark.usefixtures("apply")
def test_steps_equal_torch_adamw_with_changing_parameters_and_clipping() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(50, generator=generator)
    reference = weights.clone().requires_grad_()
    optimizer = torch.optim.AdamW([reference], lr=1.0)
    exp_avg, exp_avg_sq = zeros()
    for step, params in enumerate(STEPS, start=1):
        grad = torch.randn(50, generator=generator)
        reference.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([reference], params.grad_clip_norm or 1e30)
        optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        optimizer.step()

        metrics = adamw_step(weights, grad, exp_avg, exp_avg_sq, step, params)

        torch.testing.assert_close(weights, reference.detach(), rtol=1e-6, atol=1e-7)
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)


def test_a_first_step_without_gradient_changes_nothing() -> None:
    weights = torch.randn(50, generator=torch.Generator().manual_seed(0))
    before = weights.clone()
    metrics = adamw_step(weights, torch.zeros(50), *zeros(), step=1, params=AdamParams(0.1))
    assert torch.equal(weights, before)
    assert metrics["grad_norm"] == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    weights, grad = torch.ones(50), torch.zeros(50)
    grad[3] = bad
    exp_avg, exp_avg_sq = zeros()
    with pytest.raises(EngineFailure, match="not finite"):
        adamw_step(weights, grad, exp_avg, exp_avg_sq, 1, AdamParams(0.1))
    assert torch.equal(weights, torch.ones(50))
    assert not exp_avg.any()


@pytest.mark.usefixtures("apply")
def test_a_step_counts_as_a_change_of_the_weights() -> None:
    weights, grad = torch.randn(50), torch.randn(50)
    before = weights._version
    adamw_step(weights, grad, *zeros(), 1, AdamParams(1e-2))
    assert weights._version > before, "copies of the weights in low precision would not be made again"
