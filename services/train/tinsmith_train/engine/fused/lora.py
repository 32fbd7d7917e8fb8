"""What the kernels need to know of the adapters in one packed row: tiles, addresses, ranks and scales."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinsmith_train.engine.adapters import Adapter
from tinsmith_train.engine.decoder import Owner
from tinsmith_train.engine.transfer import upload

ROWS = 64
"""Rows of a tile."""

CHUNK_ROWS = 2048
"""Rows whose part of a weight gradient one program sums up."""

MIN_RANK = 16
"""A tensor core's smallest matrix; smaller ranks are padded with zeros that are never loaded."""


@dataclass(frozen=True)
class RowPlan:
    """The adapters of one packed row, on the device.

    tiles, chunks: int32 `[n, 3]` of first row, rows and adapter number; chunks are longer tiles.
    table:   int64 `[modules, adapters, 4]`, addresses of A, B and of their gradients.
    ranks:   int32 `[modules, adapters]`, 0 where an adapter leaves a module alone.
    scales:  fp32 `[adapters]`.
    rank:    padded rank of the row, a power of two.
    """

    tiles: Tensor
    chunks: Tensor
    table: Tensor
    ranks: Tensor
    scales: Tensor
    rank: int

    @property
    def adapters(self) -> int:
        """How many adapters share the row."""
        return len(self.scales)


@dataclass
class _Copy:
    """An adapter's weights in the base model's dtype, and where its matrices lie in a flat buffer.

    version: the state of the fp32 weights that were copied.
    places:  int64 `[modules, 2]`, first element of A and of B, -1 where the adapter has no such module.
    """

    version: int
    weights: Tensor
    places: NDArray[np.int64]


class FactorCopies:
    """Copies of all adapters' weights for matmuls in low precision, made again when the weights have changed."""

    def __init__(self, paths: Sequence[str], dtype: torch.dtype) -> None:
        self._paths = tuple(paths)
        self._dtype = dtype
        self._copies: WeakKeyDictionary[Adapter, _Copy] = WeakKeyDictionary()

    def plan(self, owners: Sequence[Owner], *, deterministic: bool) -> RowPlan:
        """Describe a row that these adapters share. Its addresses hold until an adapter's weights change."""
        adapters = [owner.adapter for owner in owners]
        device = adapters[0].weights.device
        places = np.stack([self._current(adapter).places for adapter in adapters], axis=1)
        present = places >= 0
        low = np.array([self._current(adapter).weights.data_ptr() for adapter in adapters])[None, :, None]
        grads = np.array([adapter.grad.data_ptr() for adapter in adapters])[None, :, None]
        table = np.concatenate(
            [low + places * self._dtype.itemsize, grads + places * torch.float32.itemsize], axis=2
        )
        ranks = np.where(present[:, :, 0], np.array([adapter.spec.rank for adapter in adapters]), 0)
        longest = max(owner.stop - owner.start for owner in owners)
        return RowPlan(
            tiles=upload(_pieces(owners, ROWS), device),
            chunks=upload(_pieces(owners, longest if deterministic else CHUNK_ROWS), device),
            table=upload(table.astype(np.int64), device),
            ranks=upload(ranks.astype(np.int32), device),
            scales=upload(np.array([adapter.scale for adapter in adapters], np.float32), device),
            rank=padded_rank(adapter.spec.rank for adapter in adapters),
        )

    def _current(self, adapter: Adapter) -> _Copy:
        # Torch counts the changes of a buffer, through views too.
        version = adapter.weights._version  # pyright: ignore[reportPrivateUsage]
        copy = self._copies.get(adapter)
        if copy is None:
            copy = _Copy(version, adapter.weights.detach().to(self._dtype), self._places(adapter))
            self._copies[adapter] = copy
        elif copy.version != version:
            copy.weights.copy_(adapter.weights.detach())
            copy.version = version
        return copy

    def _places(self, adapter: Adapter) -> NDArray[np.int64]:
        start, size = adapter.weights.data_ptr(), adapter.weights.element_size()
        places = np.full((len(self._paths), 2), -1, np.int64)
        for number, path in enumerate(self._paths):
            if path in adapter.pairs:
                pair = adapter.pairs[path]
                places[number] = [(side.data_ptr() - start) // size for side in (pair.a, pair.b)]
        return places


def padded_rank(ranks: Iterable[int]) -> int:
    """The power of two, at least `MIN_RANK`, that holds all of these ranks."""
    return max(MIN_RANK, 1 << (max(ranks) - 1).bit_length())


def _pieces(owners: Sequence[Owner], rows: int) -> NDArray[np.int32]:
    return np.array(
        [
            (start, min(rows, owner.stop - start), number)
            for number, owner in enumerate(owners)
            for start in range(owner.start, owner.stop, rows)
        ],
        np.int32,
    )
