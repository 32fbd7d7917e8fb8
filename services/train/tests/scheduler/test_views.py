"""Lanes as people watch them."""

import numpy as np

from tinsmith_train.engine.types import Datum, ForwardBackward
from tinsmith_train.scheduler.lanes import Lane
from tinsmith_train.scheduler.operations import Operation, Pass
from tinsmith_train.scheduler.views import view_of


def a_pass(seq_id: int, tokens: int = 4) -> Operation:
    ids = np.zeros(tokens, np.int64)
    work = Pass(ForwardBackward("m", (Datum(ids, ids),), "cross_entropy"), lambda _: b"")
    return Operation(f"m:{seq_id}", "m", seq_id, work)


def test_a_lane_is_idle_then_queued_then_running_then_closing() -> None:
    lane = Lane("m", "ann", 100)
    assert (view_of(lane, running=False).state, view_of(lane, running=True).state) == ("idle", "running")
    lane.add(a_pass(0, 7))
    lane.add(a_pass(1, 5))
    seen = view_of(lane, running=False)
    assert (seen.model_id, seen.owner, seen.state) == ("m", "ann", "queued")
    assert (seen.waiting, seen.waiting_tokens, seen.missing) == (2, 12, None)
    lane.closing = True
    assert view_of(lane, running=True).state == "closing"


def test_a_stalled_lane_says_what_is_missing() -> None:
    lane = Lane("m", "ann", 100)
    lane.add(a_pass(0))
    lane.take()
    lane.add(a_pass(2))
    seen = view_of(lane, running=False)
    assert (seen.state, seen.waiting, seen.missing) == ("stalled", 1, 1)
