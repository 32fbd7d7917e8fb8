"""Activations that round alike wherever a value lies.

torch's SiLU and tanh-GELU compute the values at the end of a thread's share one by one and the others by vectors, whose
exponentials differ in the last bit. What lies at an end depends on the whole row. Its `exp` and `tanh` know no such
difference, and single additions, products and quotients are exact roundings everywhere.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def steady_activations(module: nn.Module) -> None:
    """Replace the activations below `module` that need it. Others stay."""
    for path, child in list(module.named_modules()):
        kind = type(child).__name__
        if kind in ("SiLU", "SiLUActivation"):
            module.set_submodule(path, SteadySiLU())
        elif kind in ("GELUTanh", "PytorchGELUTanh"):
            module.set_submodule(path, SteadyTanhGELU())


class SteadySiLU(nn.Module):
    """`x / (1 + exp(-x))`."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        if x.is_cuda:
            return F.silu(x)
        y: Tensor = _SiLU.apply(x)
        return y


class SteadyTanhGELU(nn.Module):
    """`x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        if x.is_cuda:
            return F.gelu(x, approximate="tanh")
        inner = (x * x * 0.044715 + 1) * x * math.sqrt(2 / math.pi)
        return (torch.tanh(inner) + 1) * x * 0.5


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = x.neg().exp_().add_(1).reciprocal_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        return torch.rsub(gate, 1).mul_(x).add_(1).mul_(gate).mul_(grad_outputs[0])
