"""Lanes release operations strictly by `seq_id`."""

import numpy as np

from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.engine.types import Datum, ForwardBackward
from tinsmith_train.scheduler.lanes import Gap, Lane
from tinsmith_train.scheduler.operations import Operation, Pass, Task


def a_pass(seq_id: int, *lengths: int) -> Operation:
    datums = tuple(Datum(np.zeros(n, np.int64), np.zeros(n, np.int64)) for n in lengths or (4,))
    work = Pass(ForwardBackward("m", datums, "cross_entropy"), lambda _: b"")
    return Operation(f"m:{seq_id}", "m", seq_id, work)


def a_task(seq_id: int) -> Operation:
    async def run(_backend: TrainBackend) -> bytes:
        return b""

    return Operation(f"m:{seq_id}", "m", seq_id, Task(run))


def lane_of(*operations: Operation) -> Lane:
    lane = Lane("m", "ann", part_tokens=100)
    for operation in operations:
        assert lane.add(operation)
    return lane


def take_all(lane: Lane) -> list[int]:
    taken: list[int] = []
    while lane.ready:
        taken.append(lane.take().operation.seq_id)
    return taken


def test_nothing_is_released_before_what_comes_first() -> None:
    lane = lane_of(a_pass(1), a_task(2))
    assert not lane.ready
    lane.add(a_task(0))
    assert take_all(lane) == [0, 1, 2]


def test_chunks_that_arrive_backwards_run_forwards() -> None:
    assert take_all(lane_of(a_pass(2), a_pass(1), a_pass(0), a_task(3))) == [0, 1, 2, 3]


def test_a_long_pass_is_taken_in_parts_that_keep_its_datums_whole_and_only_the_first_brings_it() -> None:
    lane = lane_of(a_pass(0, 60, 30, 30, 200, 10), a_task(1))
    parts = [lane.take().part for _ in range(4)]
    assert [(part.first, part.last, part.tokens) for part in parts if part] == [
        (0, 2, 90),
        (2, 3, 30),
        (3, 4, 200),
        (4, 5, 10),
    ]
    assert [part.item is not None for part in parts if part] == [True, False, False, False]
    assert take_all(lane) == [1]


def test_what_is_left_of_a_failed_pass_is_not_run() -> None:
    lane = lane_of(a_pass(0, 60, 60, 60), a_task(1))
    assert lane.take().count == 3
    assert lane.begun is not None
    lane.give_up_begun()
    assert take_all(lane) == [1]


def test_a_drained_lane_gives_back_the_pass_that_has_begun() -> None:
    lane = lane_of(a_pass(0, 60, 60), a_task(1), a_task(7))
    lane.take()
    assert [operation.seq_id for operation in lane.drain()] == [0, 1, 7]
    assert not lane.ready


def test_a_lane_knows_what_is_ahead_of_a_turn_and_what_is_missing() -> None:
    lane = lane_of(a_pass(0, 60, 60), a_pass(1), a_pass(4))
    lane.take()
    assert [operation.seq_id for operation in lane.ahead_of(4)] == [0, 1]
    assert lane.missing_before(1) is None
    assert lane.missing_before(4) == 2
    assert lane.waiting_tokens == 60 + 4 + 4


def test_a_seq_id_runs_once() -> None:
    lane = lane_of(a_task(0))
    assert not lane.add(a_task(0))
    lane.take()
    assert not lane.add(a_task(0))


def test_a_gap_is_skipped_up_to_what_has_arrived() -> None:
    lane = lane_of(a_task(0), a_pass(3), a_task(4))
    assert lane.stalled_since is None
    assert lane.take().operation.seq_id == 0
    assert lane.stalled_since is not None
    assert lane.skip_gap() == Gap(1, 2)
    assert lane.stalled_since is None
    assert lane.take().operation.seq_id == 3
    assert not lane.add(a_pass(2)), "its turn was given up"


def test_an_empty_lane_is_not_stalled() -> None:
    assert Lane("m", "ann", 100).stalled_since is None
