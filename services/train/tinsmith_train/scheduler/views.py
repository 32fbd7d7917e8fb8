"""Lanes as people watch them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tinsmith_train.scheduler.lanes import Lane

LaneState: TypeAlias = Literal["idle", "queued", "running", "stalled", "closing"]

_NO_TURN = 2**63
"""Later than any `seq_id`."""


@dataclass(frozen=True)
class LaneView:
    """What a lane holds: how many operations have arrived and were not taken, and the tokens of those that are passes.

    state:   `running` has an operation in the engine, `queued` has something to run, `stalled` waits for the turn
             `missing` to arrive, `closing` ends once what it has is run, `idle` holds nothing.
    """

    model_id: str
    owner: str
    state: LaneState
    waiting: int
    waiting_tokens: int
    missing: int | None


def view_of(lane: Lane, *, running: bool) -> LaneView:
    """The lane now."""
    state = _state(lane, running)
    missing = lane.missing_before(_NO_TURN) if state == "stalled" else None
    return LaneView(lane.model_id, lane.owner, state, lane.waiting, lane.waiting_tokens, missing)


def _state(lane: Lane, running: bool) -> LaneState:
    if lane.closing:
        return "closing"
    if running:
        return "running"
    if lane.ready:
        return "queued"
    return "stalled" if lane.waiting else "idle"
