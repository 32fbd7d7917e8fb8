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

    bounds:  one for each span, in order.
    factors: A `[rank, in]` and B `[out, rank]` of each span in turn, fp32 leaves.
    sinks:   fp32 accumulators of their gradients. The backward pass adds to them span by span: autograd would first
             sum the spans of one adapter in this row, so that the rounding depended on what else fits into it.
    """

    bounds: tuple[Bound, ...]
    factors: tuple[Tensor, ...]
    sinks: tuple[Tensor, ...]


EMPTY = SpanSet((), (), ())
LEAST_RANK = 8
"""On a CPU the rank of a matmul is filled up with zeros to this or a higher power of two (see `packing.ROW_STEP`): at
others, such as 5 or 24, how the work is shared among threads shows in the last bits."""


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
            rows, self.base.weight, self.base.bias, spans, *spans.factors
        )
        return y.view(*x.shape[:-1], y.shape[-1])


class _FrozenLinearWithDeltas(torch.autograd.Function):
    """Deltas are added in place to the base output, and the base weight never gets a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, spans: SpanSet, *factors: Tensor
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        downs = add_deltas(y, x, spans.bounds, factors)
        ctx.spans = spans
        ctx.save_for_backward(x, weight, *downs, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gy = grad_outputs[0].contiguous()
        x, weight, *rest = ctx.saved_tensors
        spans: SpanSet = ctx.spans
        count = len(spans.bounds)
        gx = gy @ weight if ctx.needs_input_grad[0] else None
        deltas_backward(gy, x, rest[:count], spans.bounds, rest[count:], spans.sinks, gx)
        return (gx, None, None, None, *(None for _ in spans.factors))


def add_deltas(y: Tensor, x: Tensor, bounds: Sequence[Bound], factors: Sequence[Tensor]) -> list[Tensor]:
    """Add each span's delta to `y` `[T, out]` in place. Returns `scale x A^T`, `[rows, rank]`, of each span."""
    downs: list[Tensor] = []
    for index, (start, stop, scale) in enumerate(bounds):
        a, b = whole_factors(factors[2 * index], factors[2 * index + 1], x)
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
    sinks: Sequence[Tensor],
    gx: Tensor | None,
) -> None:
    """Backward of `add_deltas`: adds in place to `gx` and, in the order of the spans, to `sinks`."""
    for index, (start, stop, scale) in enumerate(bounds):
        a, b = whole_factors(factors[2 * index], factors[2 * index + 1], x)
        rows = gy[start:stop]
        g_down = (rows @ b).mul_(scale)
        sink_a, sink_b = sinks[2 * index], sinks[2 * index + 1]
        rank = sink_a.shape[0]
        sink_a.add_((g_down.T @ x[start:stop])[:rank])
        sink_b.add_((rows.T @ downs[index])[:, :rank])
        if gx is not None:
            gx[start:stop].addmm_(g_down, a)


def whole_factors(a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A and B in the dtype of `x`; on a CPU with zeros up to a power of two ranks."""
    a, b = a.to(x.dtype), b.to(x.dtype)
    rank = a.shape[0]
    missing = max(LEAST_RANK, 1 << (rank - 1).bit_length()) - rank if x.device.type == "cpu" else 0
    return (F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))) if missing else (a, b)
