"""What a packed row holds, and in which order."""

from dataclasses import replace

import numpy as np

from tinsmith_train.engine.losses import LOSSES
from tinsmith_train.engine.packing import AdapterSpan, Pieces, pack
from tinsmith_train.engine.validation import CheckedDatum, CheckedItem


def item(adapter_id: str, *lengths: int, k: int | None = None) -> CheckedItem:
    datums = tuple(
        CheckedDatum(
            tokens=np.full(n, n),
            targets=np.full(n if k is None else (n, k), n),
            inputs={"weights": np.full(n if k is None else (n, k), n, dtype=np.float32)},
        )
        for n in lengths
    )
    return CheckedItem(adapter_id, datums, LOSSES["cross_entropy"], {}, forward_only=False)


def test_submissions_of_one_adapter_become_neighbours_with_one_span() -> None:
    (row,) = pack({0: item("a", 2), 1: item("b", 3), 2: item("a", 4)}, token_budget=100)
    assert row.lengths == (2, 4, 3)
    assert row.spans == (AdapterSpan("a", 0, 6, 0, 6, single=True), AdapterSpan("b", 6, 9, 6, 9, single=True))
    assert [part.item for part in row.parts] == [0, 2, 1]
    assert row.positions.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2]


def test_rows_stay_in_the_budget_and_a_long_sequence_gets_its_own() -> None:
    rows = pack({0: item("a", 3, 3, 3, 20, 2)}, token_budget=6)
    assert [row.lengths for row in rows] == [(3, 3), (3,), (20,), (2,)]
    assert [(part.first, part.last) for row in rows for part in row.parts] == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_rows_are_as_few_as_can_be_and_then_as_even_as_can_be() -> None:
    rows = pack({0: item("a", *[2] * 9)}, token_budget=16)
    assert [sum(row.lengths) for row in rows] == [10, 8]


def test_soft_targets_repeat_the_row_that_predicts_them() -> None:
    (row,) = pack({0: item("a", 1), 1: item("a", 2, k=2)}, token_budget=100)
    assert row.target_rows.tolist() == [0, 1, 1, 2, 2]
    assert [(part.start, part.stop) for part in row.parts] == [(0, 1), (1, 5)]


def test_forward_only_submissions_never_share_a_row_with_training_ones() -> None:
    looking = replace(item("a", 2), forward_only=True)
    rows = pack({0: item("a", 3), 1: looking}, token_budget=100)
    assert sorted((row.forward_only, row.lengths) for row in rows) == [(False, (3,)), (True, (2,))]


def test_what_fits_into_a_row_is_not_split_whatever_comes_before_it() -> None:
    rows = pack({0: item("a", 3), 1: item("b", 3, 2), 2: item("c", 4, 4)}, token_budget=6)
    assert [row.lengths for row in rows] == [(3,), (3, 2), (4,), (4,)]


PIECES = Pieces(tokens=16, step=4)


def test_pieces_are_cut_by_the_submission_alone_and_never_cut_again() -> None:
    """Lengths fill up to 8, 8, 4, 20 and 4 tokens."""
    work = item("a", 5, 8, 2, 17, 4)
    for others in ({}, {0: item("b", 7)}, {0: item("b", 3), 2: item("a", 30)}):
        rows = pack({**others, 1: work}, token_budget=32, pieces=PIECES)
        mine = [(part.first, part.last) for row in rows for part in row.parts if part.item == 1]
        assert mine == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_a_piece_is_a_span_filled_up_behind_each_sequence() -> None:
    (row,) = pack({0: item("a", 3, 4), 1: item("a", 1, 2)}, token_budget=100, pieces=PIECES)
    assert row.lengths == (4, 4, 4, 4)
    assert row.tokens.tolist() == [3, 3, 3, 3, 4, 4, 4, 4, 1, 1, 1, 1, 2, 2, 2, 2]
    assert row.positions.tolist() == [0, 1, 2, 2, 0, 1, 2, 3, 0, 0, 0, 0, 0, 1, 1, 1]
    assert row.target_rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 12, 13]
    assert row.spans == (
        AdapterSpan("a", 0, 8, 0, 7, single=True),
        AdapterSpan("a", 8, 16, 7, 10, single=True),
    )


def test_a_span_tells_whether_a_token_has_several_targets() -> None:
    (row,) = pack({0: item("a", 2), 1: item("b", 2, k=2)}, token_budget=100, pieces=PIECES)
    assert [(span.first, span.last, span.single) for span in row.spans] == [(0, 2, True), (2, 6, False)]
