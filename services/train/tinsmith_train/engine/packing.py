"""Many submissions of many adapters, packed into rows without padding.

A micro-batch is one row of whole sequences. Sequences of one adapter are neighbours, so that each adapter
owns one span of the row; the targets of one submission are neighbours too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from tinsmith_train.engine.validation import CheckedItem


@dataclass(frozen=True)
class AdapterSpan:
    """Tokens `[start, stop)` of the row belong to this adapter."""

    adapter_id: str
    start: int
    stop: int


@dataclass(frozen=True)
class ItemPart:
    """The datums `[first, last)` of one submission, whose targets are `[start, stop)` of the row's M targets.

    inputs: the loss's inputs, float32 `[stop - start]`; datum_ids: int64, counted from `first`.
    """

    item: int
    first: int
    last: int
    start: int
    stop: int
    inputs: Mapping[str, NDArray[np.float32]]
    datum_ids: NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """One packed row of T tokens with M targets.

    tokens, positions: int64 `[T]`; lengths: of the sequences, in order.
    target_rows, targets: int64 `[M]`; target j is predicted after token `target_rows[j]`, which never falls.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    lengths: tuple[int, ...]
    target_rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    spans: tuple[AdapterSpan, ...]
    parts: tuple[ItemPart, ...]
    forward_only: bool


@dataclass(frozen=True)
class _Ref:
    item: int
    datum: int
    length: int


def pack(items: Mapping[int, CheckedItem], token_budget: int) -> list[MicroBatch]:
    """Pack submissions, given by their number, into rows of at most `token_budget` tokens.

    A submission that fits into one row is never split, and a longer one begins a row and has as few rows as it
    needs, of lengths as even as can be, since each costs a GPU much the same. How its sequences are
    grouped, and with that the rounding of its gradient, does not depend on what shares the batch. A sequence
    longer than the budget gets a row of its own. Submissions that only look (`forward_only`) and those that train
    never share a row, so the former run without a graph.
    """
    batches: list[MicroBatch] = []
    for forward_only in (True, False):
        chosen = {number: item for number, item in items.items() if item.forward_only == forward_only}
        refs = _in_adapter_order(chosen)
        batches.extend(_build(row, chosen, forward_only) for row in _rows(refs, token_budget))
    return batches


def _in_adapter_order(items: Mapping[int, CheckedItem]) -> list[_Ref]:
    rank = {item.adapter_id: place for place, item in reversed(list(enumerate(items.values())))}
    order = sorted(items, key=lambda number: rank[items[number].adapter_id])
    return [
        _Ref(number, index, len(datum.tokens))
        for number in order
        for index, datum in enumerate(items[number].datums)
    ]


def _rows(refs: Sequence[_Ref], token_budget: int) -> Iterator[list[_Ref]]:
    row: list[_Ref] = []
    filled = 0
    for _, group in groupby(refs, key=lambda ref: ref.item):
        item = list(group)
        lengths = [ref.length for ref in item]
        if row and filled + sum(lengths) > token_budget:
            yield row
            row, filled = [], 0
        rest = iter(item)
        *whole, _ = _cut(lengths, _even_budget(lengths, token_budget))
        for count in whole:
            yield list(islice(rest, count))
        row += rest
        filled = sum(ref.length for ref in row)
    if row:
        yield row


def _even_budget(lengths: Sequence[int], budget: int) -> int:
    """The smallest budget that needs no more rows than `budget` does."""
    most = len(_cut(lengths, budget))
    low = min(budget, sum(lengths) // most)
    while low < budget:
        middle = (low + budget) // 2
        if len(_cut(lengths, middle)) <= most:
            budget = middle
        else:
            low = middle + 1
    return budget


def _cut(lengths: Sequence[int], budget: int) -> list[int]:
    """How many sequences each row takes when rows are filled in order; one over the budget has its own."""
    counts: list[int] = []
    filled = 0
    for length in lengths:
        if counts and filled + length <= budget:
            counts[-1] += 1
            filled += length
        else:
            counts.append(1)
            filled = length
    return counts


def _build(row: Sequence[_Ref], items: Mapping[int, CheckedItem], forward_only: bool) -> MicroBatch:
    datums = [items[ref.item].datums[ref.datum] for ref in row]
    lengths = tuple(ref.length for ref in row)
    starts = np.cumsum((0, *lengths))
    widths = [datum.targets.size // len(datum.tokens) for datum in datums]
    return MicroBatch(
        tokens=np.concatenate([datum.tokens for datum in datums]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        lengths=lengths,
        target_rows=np.concatenate(
            [
                np.repeat(np.arange(start, start + length), width)
                for start, length, width in zip(starts, lengths, widths, strict=False)
            ]
        ),
        targets=np.concatenate([datum.targets.ravel() for datum in datums]),
        spans=tuple(_spans(row, items)),
        parts=tuple(_parts(row, items)),
        forward_only=forward_only,
    )


def _spans(row: Sequence[_Ref], items: Mapping[int, CheckedItem]) -> Iterator[AdapterSpan]:
    start = 0
    for adapter_id, refs in groupby(row, key=lambda ref: items[ref.item].adapter_id):
        stop = start + sum(ref.length for ref in refs)
        yield AdapterSpan(adapter_id, start, stop)
        start = stop


def _parts(row: Sequence[_Ref], items: Mapping[int, CheckedItem]) -> Iterator[ItemPart]:
    start = 0
    for number, group in groupby(row, key=lambda ref: ref.item):
        refs = list(group)
        datums = [items[number].datums[ref.datum] for ref in refs]
        sizes = [datum.targets.size for datum in datums]
        stop = start + sum(sizes)
        inputs = {
            name: np.concatenate([datum.inputs[name].ravel() for datum in datums])
            for name in datums[0].inputs
        }
        datum_ids = np.repeat(np.arange(len(datums)), sizes)
        yield ItemPart(number, refs[0].datum, refs[-1].datum + 1, start, stop, inputs, datum_ids)
        start = stop
