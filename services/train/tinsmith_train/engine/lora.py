"""Low-rank deltas on frozen linear layers, many adapters in one row.

A row of T tokens is cut into spans, one for each adapter. The span's rows get `scale * (x A^T) B^T` on top of
the frozen layer's output. Matmuls run in the base model's dtype; A, B and their gradients are fp32.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Bound = tuple[int, int, float]
"""Start and end row of a span, and its scale."""


@dataclass(frozen=True)
class SpanSet:
    """The adapters of one module in the running pass.

    bounds:  one for each span.
    factors: A `[rank, in]` and B `[out, rank]` of each span in turn, fp32 leaves.
    """

    bounds: tuple[Bound, ...]
    factors: tuple[Tensor, ...]


EMPTY = SpanSet((), ())


class SpanTable:
    """Who owns which rows during a pass. One table is shared by all the wrapped layers of a model."""

    def __init__(self) -> None:
        self._by_module: Mapping[str, SpanSet] = {}

    def of(self, module: str) -> SpanSet:
        """The spans of the module with this path, empty outside a pass."""
        return self._by_module.get(module, EMPTY)

    @contextmanager
    def active(self, by_module: Mapping[str, SpanSet]) -> Generator[None]:
        """Use these spans until the end of the block."""
        self._by_module = by_module
        try:
            yield
        finally:
            self._by_module = {}


class LoraLinear(nn.Module):
    """A frozen linear layer plus the deltas of whichever adapters own rows of its input."""

    def __init__(self, base: nn.Linear, path: str, table: SpanTable) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self._table = table

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`; the leading dimensions multiply to T rows."""
        spans = self._table.of(self.path)
        if not spans.bounds:
            return self.base(x)
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = _FrozenLinearWithDeltas.apply(
            rows, self.base.weight, self.base.bias, spans.bounds, *spans.factors
        )
        return y.view(*x.shape[:-1], y.shape[-1])


class _FrozenLinearWithDeltas(torch.autograd.Function):
    """Deltas are added in place to the base output, and the base weight never gets a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, bounds: Sequence[Bound], *factors: Tensor
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        downs = add_deltas(y, x, bounds, factors)
        ctx.bounds = bounds
        ctx.save_for_backward(x, weight, *downs, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gy = grad_outputs[0].contiguous()
        x, weight, *rest = ctx.saved_tensors
        count = len(ctx.bounds)
        gx = gy @ weight if ctx.needs_input_grad[0] else None
        grads = deltas_backward(gy, x, rest[:count], ctx.bounds, rest[count:], gx)
        return gx, None, None, None, *grads


def add_deltas(y: Tensor, x: Tensor, bounds: Sequence[Bound], factors: Sequence[Tensor]) -> list[Tensor]:
    """Add each span's delta to `y` `[T, out]` in place. Returns `scale x A^T`, `[rows, rank]`, of each span."""
    downs: list[Tensor] = []
    for index, (start, stop, scale) in enumerate(bounds):
        a, b = factors[2 * index].to(x.dtype), factors[2 * index + 1].to(x.dtype)
        down = (x[start:stop] @ a.T).mul_(scale)
        y[start:stop].addmm_(down, b.T)
        downs.append(down)
    return downs


def deltas_backward(
    gy: Tensor,
    x: Tensor,
    downs: Sequence[Tensor],
    bounds: Sequence[Bound],
    factors: Sequence[Tensor],
    gx: Tensor | None,
) -> list[Tensor]:
    """Backward of `add_deltas`: adds to `gx` in place and returns fp32 gradients in the order of `factors`."""
    grads: list[Tensor] = []
    for index, (start, stop, scale) in enumerate(bounds):
        a, b = factors[2 * index].to(x.dtype), factors[2 * index + 1].to(x.dtype)
        rows = gy[start:stop]
        g_down = (rows @ b).mul_(scale)
        grads.append((g_down.T @ x[start:stop]).float())
        grads.append((rows.T @ downs[index]).float())
        if gx is not None:
            gx[start:stop].addmm_(g_down, a)
    return grads
