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
    if 0 < params.grad_clip_norm < grad_norm:
        grad.mul_(params.grad_clip_norm / (grad_norm + 1e-6))
    exp_avg.lerp_(grad, 1 - params.beta1)
    exp_avg_sq.mul_(params.beta2).addcmul_(grad, grad, value=1 - params.beta2)
    if params.weight_decay:
        weights.mul_(1 - params.learning_rate * params.weight_decay)
    correction1, correction2 = 1 - params.beta1**step, 1 - params.beta2**step
    denominator = exp_avg_sq.sqrt().div_(math.sqrt(correction2)).add_(params.eps)
    weights.addcdiv_(exp_avg, denominator, value=-params.learning_rate / correction1)
    # Not "step": clients merge these into a log's row, where that name is the row's own number.
    return {"grad_norm": grad_norm, "learning_rate": params.learning_rate, "optimizer_step": float(step)}
