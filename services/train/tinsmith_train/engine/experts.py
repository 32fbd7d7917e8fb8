"""Low-rank deltas on the stacked experts of a mixture, many adapters in one row.

The factor at the side of the hidden state is one for all experts, the other is each expert's own: gate and up have A
`[1, rank, hidden]` and B `[experts, width, rank]`, down has A `[experts, rank, width]` and B `[1, hidden, rank]`. That
is how the hosted service trains experts, and what `tinker_cookbook.weights` reads. The router stays frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinsmith_train.engine.adapters import LoraTarget
from tinsmith_train.engine.lora import SpanTable

MIN_RANK = 8
"""Grouped matmuls want rows of 16 bytes: smaller ranks, and those between its multiples, are padded with zeros."""


@dataclass(frozen=True)
class _Route:
    """Every (token, expert) pair of a row, sorted by expert; within an expert by token.

    tokens: int64 `[P]`, the row of each pair; weights `[P]` of its expert.
    ends:   int32 `[experts]`, where each expert's pairs end.
    order:  int64 `[P]`, place of each pair in the unsorted `[T, k]`.
    """

    tokens: Tensor
    weights: Tensor
    ends: Tensor
    experts: Tensor
    order: Tensor

    @classmethod
    def of(cls, chosen: Tensor, weights: Tensor, count: int) -> "_Route":
        experts, order = chosen.flatten().sort(stable=True)
        return cls(order // chosen.shape[1], weights.flatten()[order], _ends(experts, count), experts, order)


@dataclass(frozen=True)
class _Share:
    """The pairs of one adapter, `pairs` int64 `[p]` into the route, and its factors in the row's dtype."""

    pairs: Tensor
    ends: Tensor
    tokens: Tensor
    scale: float
    factors: tuple[Tensor, ...]


class LoraExperts(nn.Module):
    """Frozen experts as Hugging Face stacks them, plus the deltas of whichever adapters own rows of the input."""

    def __init__(self, base: Any, path: str, table: SpanTable) -> None:
        super().__init__()
        self.base = base
        self._table = table
        count, double, hidden = base.gate_up_proj.shape
        width, mlp = double // 2, "mlp"
        self.targets = (
            LoraTarget(f"{path}.w1", hidden, width, mlp, 1, count, "gate_proj"),
            LoraTarget(f"{path}.w3", hidden, width, mlp, 1, count, "up_proj"),
            LoraTarget(f"{path}.w2", width, hidden, mlp, count, 1, "down_proj"),
        )

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """`[T, hidden]` with the experts `[T, k]` of each token and their weights -> `[T, hidden]`."""
        base = self.base
        route = _Route.of(chosen, weights, len(base.gate_up_proj))
        shares = self._shares(route, x.dtype)
        gate_up = _grouped(x[route.tokens], base.gate_up_proj, route.ends)
        for share in shares:
            gate_up = gate_up.index_add(0, share.pairs, _wide_delta(x, share))
        act: Tensor = base._apply_gate(gate_up)
        down = _grouped(act, base.down_proj, route.ends)
        for share in shares:
            down = down.index_add(0, share.pairs, _narrow_delta(act, share))
        return _gather(down, route, chosen.shape)

    def _shares(self, route: _Route, dtype: torch.dtype) -> list[_Share]:
        spans = [self._table.of(target.path) for target in self.targets]
        shares: list[_Share] = []
        for number, (start, stop, scale) in enumerate(spans[0].bounds):
            pairs = ((route.tokens >= start) & (route.tokens < stop)).nonzero()[:, 0]
            factors = (side for span in spans for side in span.factors[2 * number : 2 * number + 2])
            shares.append(
                _Share(
                    pairs,
                    _ends(route.experts[pairs], len(route.ends)),
                    route.tokens[pairs],
                    scale,
                    tuple(factor.to(dtype) for factor in factors),
                )
            )
        return shares


def _wide_delta(x: Tensor, share: _Share) -> Tensor:
    """Of gate and up side by side, `[p, 2 width]`."""
    a1, b1, a3, b3 = share.factors[:4]
    rows = x[share.tokens] * share.scale
    return torch.cat(
        [_grouped(*_padded(rows @ a[0].T, b), share.ends) for a, b in ((a1, b1), (a3, b3))], dim=1
    )


def _narrow_delta(act: Tensor, share: _Share) -> Tensor:
    """Of down, `[p, hidden]`."""
    a, b = share.factors[4:]
    rank = a.shape[1]
    a = F.pad(a, (0, 0, 0, -rank % MIN_RANK))
    return (_grouped(act[share.pairs], a, share.ends)[:, :rank] * share.scale) @ b[0].T


def _padded(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    missing = -x.shape[1] % MIN_RANK
    return F.pad(x, (0, missing)), F.pad(weight, (0, missing))


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows `[P, in]` of each expert in turn by its `[out, in]` of `weight` -> `[P, out]`."""
    return F.grouped_mm(x, weight.mT, offs=ends)


def _ends(experts: Tensor, count: int) -> Tensor:
    """Where each expert's rows end, int32 `[count]`, when the rows are sorted by `experts`."""
    return torch.bincount(experts, minlength=count).cumsum(0).to(torch.int32)


def _gather(rows: Tensor, route: _Route, shape: Sequence[int]) -> Tensor:
    """Weighted sum of each token's experts."""
    weighted = rows * route.weights[:, None]
    unsorted = torch.empty_like(weighted).index_copy(0, route.order, weighted)
    return unsorted.view(*shape, -1).sum(1)
