"""Lanes release operations strictly by `seq_id`."""

import numpy as np

from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.engine.types import Datum, ForwardBackward
from tinsmith_train.scheduler.lanes import Gap, Lane
from tinsmith_train.scheduler.operations import Operation, Pass, Task


def a_pass(seq_id: int, tokens: int = 4) -> Operation:
    ids = np.zeros(tokens, np.int64)
    work = Pass(ForwardBackward("m", (Datum(ids, ids),), "cross_entropy"), lambda _: b"")
    return Operation(f"m:{seq_id}", "m", seq_id, work)


def a_task(seq_id: int) -> Operation:
    async def run(_backend: TrainBackend) -> bytes:
        return b""

    return Operation(f"m:{seq_id}", "m", seq_id, Task(run))


def seq_ids(operations: list[Operation]) -> list[int]:
    return [operation.seq_id for operation in operations]


def lane_of(*operations: Operation) -> Lane:
    lane = Lane("m")
    for operation in operations:
        assert lane.add(operation)
    return lane


def test_nothing_is_released_before_what_comes_first() -> None:
    lane = lane_of(a_pass(1), a_task(2))
    assert not lane.ready
    assert lane.take(100) == []
    lane.add(a_task(0))
    assert seq_ids(lane.take(100)) == [0]


def test_chunks_that_arrive_backwards_run_forwards_and_together() -> None:
    lane = lane_of(a_pass(2), a_pass(1), a_pass(0), a_task(3))
    assert seq_ids(lane.take(100)) == [0, 1, 2]
    assert seq_ids(lane.take(100)) == [3]


def test_a_task_runs_alone() -> None:
    lane = lane_of(a_task(0), a_task(1), a_pass(2))
    assert [seq_ids(lane.take(100)) for _ in range(3)] == [[0], [1], [2]]


def test_the_token_budget_bounds_what_is_merged_but_never_the_first() -> None:
    lane = lane_of(a_pass(0, tokens=500), a_pass(1, tokens=60), a_pass(2, tokens=30), a_pass(3, tokens=30))
    assert [seq_ids(lane.take(100)) for _ in range(3)] == [[0], [1, 2], [3]]


def test_a_seq_id_runs_once() -> None:
    lane = lane_of(a_task(0))
    assert not lane.add(a_task(0))
    lane.take(100)
    assert not lane.add(a_task(0))


def test_a_gap_is_skipped_up_to_what_has_arrived() -> None:
    lane = lane_of(a_task(0), a_pass(3), a_task(4))
    assert lane.stalled_since is None
    assert seq_ids(lane.take(100)) == [0]
    assert lane.stalled_since is not None
    assert lane.skip_gap() == Gap(1, 2)
    assert lane.stalled_since is None
    assert seq_ids(lane.take(100)) == [3]
    assert not lane.add(a_pass(2)), "its turn was given up"


def test_an_empty_lane_is_not_stalled() -> None:
    assert Lane("m").stalled_since is None
