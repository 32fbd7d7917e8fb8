"""Turns are given out by tokens: to lanes alike, and to accounts alike."""

from collections import Counter

import numpy as np

from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.engine.types import Datum, ForwardBackward
from tinsmith_train.scheduler.fairness import FairOrder
from tinsmith_train.scheduler.lanes import Lane
from tinsmith_train.scheduler.operations import Operation, Pass, Portion, Task

ROW = 1000


def a_lane(name: str, *passes: int, owner: str | None = None) -> Lane:
    """With a pass for each number, of datums of 100 tokens."""
    lane = Lane(name, owner or name, ROW)
    for seq_id, tokens in enumerate(passes):
        add_pass(lane, seq_id, tokens)
    return lane


def add_pass(lane: Lane, seq_id: int, tokens: int) -> None:
    whole, rest = divmod(tokens, 100)
    ids = [np.zeros(n, np.int64) for n in [100] * whole + [rest] * (rest > 0)]
    work = Pass(ForwardBackward(lane.model_id, tuple(Datum(n, n) for n in ids), "x"), lambda _: b"")
    assert lane.add(Operation(f"{lane.model_id}:{seq_id}", lane.model_id, seq_id, work))


def add_task(lane: Lane, seq_id: int) -> None:
    async def run(_backend: TrainBackend) -> bytes:
        return b""

    assert lane.add(Operation(f"{lane.model_id}:{seq_id}", lane.model_id, seq_id, Task(run)))


def names(portions: list[Portion]) -> list[str]:
    return [portion.operation.model_id for portion in portions]


def test_short_passes_of_all_lanes_share_a_cycle() -> None:
    lanes = [a_lane("a", 100, 100), a_lane("b", 300), a_lane("c", 500)]
    assert sorted(names(FairOrder(ROW).take(lanes))) == ["a", "a", "b", "c"]


def test_a_cycle_stays_in_its_bound_unless_one_portion_alone_is_longer() -> None:
    order, lanes = FairOrder(450), [a_lane("a", 300, 100), a_lane("b", 200)]
    assert names(order.take(lanes)) == ["b"]
    assert names(order.take(lanes)) == ["a", "a"]
    assert names(FairOrder(450).take([a_lane("a", 900)])) == ["a"]


def test_two_huge_passes_take_turns() -> None:
    order, lanes = FairOrder(ROW), [a_lane("a", 5 * ROW), a_lane("b", 5 * ROW)]
    assert [names(order.take(lanes)) for _ in range(6)] == [["a"], ["b"]] * 3


def test_a_small_pass_is_next_however_many_hogs_there_are_and_however_long_they_ran() -> None:
    order, hogs = FairOrder(ROW), [a_lane(f"hog {n}", *[20 * ROW] * 3) for n in range(20)]
    for _ in range(100):
        order.take(hogs)
    assert names(order.take([*hogs, a_lane("small", 23)])) == ["small"]


def test_a_client_that_sends_one_small_pass_after_the_other_is_served_every_second_cycle() -> None:
    order, hog, small = FairOrder(ROW), a_lane("hog", 100 * ROW), a_lane("small")
    cycles: list[list[str]] = []
    for seq_id in range(10):
        cycles.append(names(order.take([hog, small])))  # arrives while this one runs
        add_pass(small, seq_id, 23)
        cycles.append(names(order.take([hog, small])))
    assert cycles == [["hog"], ["small"]] * 10


def test_idleness_earns_no_credit() -> None:
    """A lane that was idle for long gets its share, and not all that it had left to others."""
    order, early, late = FairOrder(ROW), a_lane("early", 100 * ROW), a_lane("late")
    for _ in range(50):
        order.take([early, late])
    add_pass(late, 0, 50 * ROW)
    assert Counter(name for _ in range(10) for name in names(order.take([early, late]))) == {
        "early": 5,
        "late": 5,
    }


def test_accounts_share_alike_whatever_their_number_of_models() -> None:
    order = FairOrder(ROW)
    lanes = [a_lane(f"crowd {n}", 100 * ROW, owner="crowd") for n in range(4)] + [a_lane("single", 100 * ROW)]
    served = Counter(name for _ in range(80) for name in names(order.take(lanes)))
    assert 38 <= served["single"] <= 42
    assert all(9 <= served[f"crowd {n}"] <= 11 for n in range(4))


def test_a_task_runs_alone_and_after_the_passes_before_it() -> None:
    order, lane = FairOrder(ROW), a_lane("a", 100)
    add_task(lane, 1)
    add_pass(lane, 2, 100)
    cycles = [order.take([lane]) for _ in range(3)]
    assert [[portion.operation.seq_id for portion in cycle] for cycle in cycles] == [[0], [1], [2]]


def test_nothing_of_a_lane_shares_a_cycle_with_a_part_of_its_long_pass() -> None:
    order, lane = FairOrder(5 * ROW), a_lane("a", 100, 2 * ROW, 100)
    cycles = [order.take([lane]) for _ in range(4)]
    assert [[portion.operation.seq_id for portion in cycle] for cycle in cycles] == [[0], [1], [1], [2]]


def test_nothing_ready_is_an_empty_cycle() -> None:
    assert FairOrder(ROW).take([a_lane("a")]) == []
