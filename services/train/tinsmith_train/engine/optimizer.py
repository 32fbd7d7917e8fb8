"""AdamW on flat buffers, with its parameters given anew at each step."""

import math

import torch
from torch import Tensor

from tinsmith_common.errors import EngineFailure
from tinsmith_train.engine.types import AdamParams


@torch.no_grad()
def adamw_step(
    weights: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, params: AdamParams
) -> dict[str, float]:
    """Apply step number `step` (counted from 1) in place. All tensors are flat fp32 of one length.

    Decoupled weight decay, bias correction by the step number, epsilon outside the square root; the gradient
    is first scaled down to the global L2 norm `grad_clip_norm` if that is over 0. `grad` may be overwritten.
    Returns metrics. Raises `EngineFailure`, and changes nothing, when the gradient is not finite.
    """
    grad_norm = torch.linalg.vector_norm(grad).item()
    if not math.isfinite(grad_norm):
        raise EngineFailure(
            "the accumulated gradient is not finite: the step was not applied and the gradient is cleared; "
            "lower the learning rate or the size of weights and advantages"
        )
    excess = 1.0
    if 0 < params.grad_clip_norm < grad_norm:
        excess = (grad_norm + 1e-6) / params.grad_clip_norm
    apply = _apply_in_one_pass if weights.is_cuda else _apply
    apply(weights, grad, exp_avg, exp_avg_sq, step, params, excess)
    # Not "step": clients merge these into a log's row, where that name is the row's own number.
    return {"grad_norm": grad_norm, "learning_rate": params.learning_rate, "optimizer_step": float(step)}


def _apply(
    weights: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    params: AdamParams,
    excess: float,
) -> None:
    """The step as Loshchilov and Hutter write it (algorithm 2), with the gradient divided by `excess`."""
    if excess != 1.0:
        grad.div_(excess)
    exp_avg.lerp_(grad, 1 - params.beta1)
    exp_avg_sq.mul_(params.beta2).addcmul_(grad, grad, value=1 - params.beta2)
    if params.weight_decay:
        weights.mul_(1 - params.learning_rate * params.weight_decay)
    correction1, correction2 = 1 - params.beta1**step, 1 - params.beta2**step
    denominator = exp_avg_sq.sqrt().div_(math.sqrt(correction2)).add_(params.eps)
    weights.addcdiv_(exp_avg, denominator, value=-params.learning_rate / correction1)


def _apply_in_one_pass(
    weights: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    params: AdamParams,
    excess: float,
) -> None:
    """The same by the kernel of `torch.optim.AdamW(fused=True)`: a third of the memory traffic, in one launch."""
    torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        [weights], [grad], [exp_avg], [exp_avg_sq], [],
        [torch.full((), float(step), device=weights.device)],
        lr=params.learning_rate, beta1=params.beta1, beta2=params.beta2, weight_decay=params.weight_decay,
        eps=params.eps, amsgrad=False, maximize=False,
        grad_scale=None if excess == 1.0 else torch.full((), excess, device=weights.device), found_inf=None,
    )  # fmt: skip
    torch.autograd.graph.increment_version(weights)  # which that kernel forgets
