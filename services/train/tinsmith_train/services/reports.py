"""Figures that clients report of their runs, such as rewards, as events of the telemetry they send anyway.

`trainer.get_telemetry().log("tinsmith/metrics", {"model_id": trainer.model_id, "step": 3, "reward": 0.5})`
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, cast

from tinsmith_common.watch import Report

EVENT_NAME = "tinsmith/metrics"
MAX_FIGURES = 16
"""Of one event; more are left out."""
_MAX_NAME = 64
_MAX_STEP = 2**53
_ADDRESS = ("model_id", "step")


def reports_of(events: Sequence[Mapping[str, Any]]) -> Iterator[Report]:
    """The figures in a batch of events. What is not understood is left out: no client waits for an answer."""
    now = datetime.now(UTC)
    for event in events:
        data = event.get("event_data")
        if event.get("event_name") != EVENT_NAME or not isinstance(data, dict):
            continue
        figures = cast(dict[str, Any], data)
        run_id, step = figures.get("model_id"), figures.get("step")
        if not isinstance(run_id, str):
            continue
        counted = isinstance(step, int) and not isinstance(step, bool) and abs(step) <= _MAX_STEP
        named = [(name, value) for name, value in figures.items() if name not in _ADDRESS]
        for name, value in named[:MAX_FIGURES]:
            if _is_storable(name) and _is_figure(value):
                yield Report(run_id, name, now, float(value), step if counted else None)


def _is_storable(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and name.isprintable()  # half a surrogate pair is not


def _is_figure(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False
