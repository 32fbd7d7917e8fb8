"""Which adapters are in the device's memory; the least recently used ones wait in the host's.

Models that train all their weights have a bound of their own, and stay.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinsmith_common.errors import NotFound
from tinsmith_train.engine.adapters import Adapter, LoraTarget
from tinsmith_train.engine.types import LoraSpec, Residency
from tinsmith_train.engine.whole import FullModel


@dataclass(frozen=True)
class _Spilled:
    """All of an adapter, in host memory. What is zero, a gradient or moments, is None."""

    spec: LoraSpec
    weights: Tensor
    grad: Tensor | None
    moments: tuple[Tensor, Tensor] | None
    step: int


class ResidentAdapters:
    """Adapters by id, at most `limit` of them on the device (None: all), full models not counted."""

    def __init__(self, targets: Sequence[LoraTarget], device: torch.device, limit: int | None) -> None:
        self._targets = targets
        self._device = device
        self._limit = limit
        # In the order of their last use.
        self._live: dict[str, Adapter] = {}
        self._spilled: dict[str, _Spilled] = {}
        self._full: dict[str, FullModel] = {}
        self._spills = 0

    @property
    def residency(self) -> Residency:
        """The counts, without full models."""
        return Residency(len(self._live), len(self._spilled), self._spills)

    def require(self, adapter_id: str) -> None:
        """Raise `NotFound` unless there is such an adapter."""
        if not any(adapter_id in place for place in (self._live, self._spilled, self._full)):
            raise NotFound(f"no adapter '{adapter_id}' here: create the model or load it from a checkpoint")

    def put(self, adapter_id: str, adapter: Adapter) -> None:
        """Add or replace an adapter that is on the device."""
        self.drop(adapter_id)
        if isinstance(adapter, FullModel):
            self._full[adapter_id] = adapter
            return
        self._make_room(1, keep=())
        self._live[adapter_id] = adapter

    def drop(self, adapter_id: str) -> None:
        """Forget it. Unknown ids are ignored."""
        self._live.pop(adapter_id, None)
        self._spilled.pop(adapter_id, None)
        self._full.pop(adapter_id, None)

    def fetch(self, adapter_ids: Iterable[str]) -> None:
        """Bring these onto the device, not more than `limit` of them, as the most recently used. Raises `NotFound`."""
        wanted = [adapter_id for adapter_id in dict.fromkeys(adapter_ids) if adapter_id not in self._full]
        for adapter_id in wanted:
            self.require(adapter_id)
        missing = [adapter_id for adapter_id in wanted if adapter_id not in self._live]
        self._make_room(len(missing), keep=wanted)
        for adapter_id in missing:
            self._live[adapter_id] = self._restore(self._spilled[adapter_id])
            del self._spilled[adapter_id]
        for adapter_id in wanted:
            self._live[adapter_id] = self._live.pop(adapter_id)

    def live(self, adapter_id: str) -> Adapter:
        """An adapter that is on the device."""
        return self._full[adapter_id] if adapter_id in self._full else self._live[adapter_id]

    def full_models(self, besides: str) -> int:
        """How many there are, this one not counted."""
        return len(self._full.keys() - {besides})

    def groups(self, adapter_ids: Iterable[str]) -> list[list[str]]:
        """The distinct ids in order, in groups that fit onto the device; at least one group."""
        groups: list[list[str]] = [[]]
        filled = 0
        for adapter_id in dict.fromkeys(adapter_ids):
            if adapter_id not in self._full:
                if filled == self._limit:
                    groups.append([])
                    filled = 0
                filled += 1
            groups[-1].append(adapter_id)
        return groups

    def _make_room(self, count: int, keep: Sequence[str]) -> None:
        if self._limit is None:
            return
        surplus = len(self._live) + count - self._limit
        for adapter_id in [name for name in self._live if name not in keep][: max(0, surplus)]:
            self._spilled[adapter_id] = _spill(self._live[adapter_id])
            del self._live[adapter_id]
            self._spills += 1

    def _restore(self, spilled: _Spilled) -> Adapter:
        adapter = Adapter(spilled.spec, self._targets, self._device, initialise=False)
        adapter.step = spilled.step
        with torch.no_grad():
            adapter.weights.copy_(spilled.weights)
            if spilled.grad is not None:
                adapter.grad.copy_(spilled.grad)
                adapter.has_grad = True
            if spilled.moments is not None:
                adapter.exp_avg.copy_(spilled.moments[0])
                adapter.exp_avg_sq.copy_(spilled.moments[1])
        return adapter


def _spill(adapter: Adapter) -> _Spilled:
    moved = bool(adapter.exp_avg.any() or adapter.exp_avg_sq.any())
    return _Spilled(
        adapter.spec,
        _to_host(adapter.weights),
        _to_host(adapter.grad) if adapter.has_grad else None,
        (_to_host(adapter.exp_avg), _to_host(adapter.exp_avg_sq)) if moved else None,
        adapter.step,
    )


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, page-locked when it comes from a GPU, so that it is copied directly."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor.detach())
