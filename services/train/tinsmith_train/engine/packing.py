"""Many submissions of many adapters, packed into rows.

A micro-batch is one row of whole sequences. Sequences of one adapter are neighbours, so that each adapter
owns spans of the row; the targets of one submission are neighbours too.

With `Pieces`, what a row computes for a submission depends on nothing else in the row: a submission is cut into pieces
by its own lengths alone, a piece is never cut, and is a span and a loss of its own. docs/exactness.md tells the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from tinsmith_train.engine.validation import CheckedItem

ROW_STEP = 8
"""Rows of a matmul come in multiples of this on a CPU.

Its library gives each thread a share of the rows, and takes the last one to three rows of a share by kernels that add
in another order. Shares of multiples of 4 rows have no such rest.
"""


@dataclass(frozen=True)
class Pieces:
    """Packing by pieces of at most `tokens` tokens (a longer sequence is one), each sequence filled up to `step`."""

    tokens: int
    step: int = ROW_STEP


@dataclass(frozen=True)
class AdapterSpan:
    """Tokens `[start, stop)` of the row and its targets `[first, last)` belong to this adapter.

    single: no token has more than one target.
    """

    adapter_id: str
    start: int
    stop: int
    first: int
    last: int
    single: bool


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

    tokens, positions: int64 `[T]`; lengths: of the sequences with what fills them up, in order.
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
    """A datum, the tokens it takes in a row, and the piece that it is part of."""

    item: int
    datum: int
    length: int
    piece: int


def pack(
    items: Mapping[int, CheckedItem], token_budget: int, pieces: Pieces | None = None
) -> list[MicroBatch]:
    """Pack submissions, given by their number, into rows of at most `token_budget` tokens.

    A sequence longer than the budget gets a row of its own. Submissions that only look (`forward_only`) and those that
    train never share a row, so the former run without a graph. What else is cut is told by `_rows`, and with `pieces`
    by `_rows_of_pieces`.
    """
    rows = _rows if pieces is None else _rows_of_pieces
    batches: list[MicroBatch] = []
    for forward_only in (True, False):
        chosen = {number: item for number, item in items.items() if item.forward_only == forward_only}
        refs = _in_adapter_order(chosen, pieces)
        batches.extend(_build(row, chosen, forward_only, pieces) for row in rows(refs, token_budget))
    return batches


def _in_adapter_order(items: Mapping[int, CheckedItem], pieces: Pieces | None) -> list[_Ref]:
    rank = {item.adapter_id: place for place, item in reversed(list(enumerate(items.values())))}
    order = sorted(items, key=lambda number: rank[items[number].adapter_id])
    refs: list[_Ref] = []
    for number in order:
        filled = 0
        for index, datum in enumerate(items[number].datums):
            length = len(datum.tokens)
            piece = len(refs)
            if pieces is not None:
                length += -length % pieces.step
                if filled and filled + length <= pieces.tokens:
                    piece = refs[-1].piece
                else:
                    filled = 0
                filled += length
            refs.append(_Ref(number, index, length, piece))
    return refs


def _rows_of_pieces(refs: Sequence[_Ref], token_budget: int) -> Iterator[list[_Ref]]:
    """As many whole pieces to a row as fit."""
    row: list[_Ref] = []
    filled = 0
    for _, group in groupby(refs, key=lambda ref: ref.piece):
        piece = list(group)
        length = sum(ref.length for ref in piece)
        if row and filled + length > token_budget:
            yield row
            row, filled = [], 0
        row += piece
        filled += length
    if row:
        yield row


def _rows(refs: Sequence[_Ref], token_budget: int) -> Iterator[list[_Ref]]:
    """A submission that fits into one row is never split, and a longer one begins a row and has as few as it needs.

    These are of lengths as even as can be, since each costs a GPU much the same. How its sequences are grouped, and
    with that the rounding of its gradient, does not depend on what shares the batch.
    """
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


def _build(
    row: Sequence[_Ref], items: Mapping[int, CheckedItem], forward_only: bool, pieces: Pieces | None
) -> MicroBatch:
    datums = [items[ref.item].datums[ref.datum] for ref in row]
    lengths = tuple(ref.length for ref in row)
    starts = np.cumsum((0, *lengths))
    widths = [datum.targets.size // len(datum.tokens) for datum in datums]
    return MicroBatch(
        tokens=np.concatenate(
            [_filled_up(datum.tokens, length) for datum, length in zip(datums, lengths, strict=True)]
        ),
        positions=np.concatenate(
            [_filled_up(np.arange(len(d.tokens)), n) for d, n in zip(datums, lengths, strict=True)]
        ),
        lengths=lengths,
        target_rows=np.concatenate(
            [
                np.repeat(np.arange(start, start + len(datum.tokens)), width)
                for start, datum, width in zip(starts, datums, widths, strict=False)
            ]
        ),
        targets=np.concatenate([datum.targets.ravel() for datum in datums]),
        spans=tuple(_spans(row, items, pieces)),
        parts=tuple(_parts(row, items, pieces)),
        forward_only=forward_only,
    )


def _filled_up(values: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The last value again and again: it stands behind the sequence, whose attention never looks ahead."""
    return np.pad(values, (0, length - len(values)), mode="edge")


def _spans(
    row: Sequence[_Ref], items: Mapping[int, CheckedItem], pieces: Pieces | None
) -> Iterator[AdapterSpan]:
    def owner(ref: _Ref) -> tuple[str, int]:
        return items[ref.item].adapter_id, 0 if pieces is None else ref.piece

    start = first = 0
    for (adapter_id, _), group in groupby(row, key=owner):
        refs = list(group)
        datums = [items[ref.item].datums[ref.datum] for ref in refs]
        stop = start + sum(ref.length for ref in refs)
        last = first + sum(datum.targets.size for datum in datums)
        single = all(datum.targets.size == len(datum.tokens) for datum in datums)
        yield AdapterSpan(adapter_id, start, stop, first, last, single)
        start, first = stop, last


def _parts(
    row: Sequence[_Ref], items: Mapping[int, CheckedItem], pieces: Pieces | None
) -> Iterator[ItemPart]:
    def key(ref: _Ref) -> int:
        return ref.item if pieces is None else ref.piece

    start = 0
    for _, group in groupby(row, key=key):
        refs = list(group)
        number = refs[0].item
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
