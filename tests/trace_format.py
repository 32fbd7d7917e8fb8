"""The Trace Event Format, as far as exports use it, as a JSON schema and as rules that a schema cannot say."""

from collections import Counter, defaultdict
from typing import Any

import jsonschema

_ID = {"type": "integer", "minimum": 0}
_TIME = {"type": "integer", "minimum": 0}
_NAME = {"type": "string", "minLength": 1}
_PLACE = {"pid": _ID, "tid": _ID, "ts": _TIME}


def _event(phase: str, required: dict[str, Any]) -> dict[str, Any]:
    properties = {"ph": {"const": phase}, "name": _NAME, **_PLACE, **required}
    return {"properties": properties, "required": list(properties), "additionalProperties": False}


def _metadata(name: str, argument: str, kind: dict[str, Any]) -> dict[str, Any]:
    args = {"properties": {argument: kind}, "required": [argument], "additionalProperties": False}
    return _event("M", {"name": {"const": name}, "args": args})


TRACE_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["traceEvents", "displayTimeUnit", "otherData"],
    "additionalProperties": False,
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "oneOf": [
                    _event(
                        "X",
                        {"cat": _NAME, "dur": {"type": "integer", "minimum": 1}, "args": {"type": "object"}},
                    ),
                    _event("s", {"cat": _NAME, "id": _ID}),
                    _event("f", {"cat": _NAME, "id": _ID, "bp": {"const": "e"}}),
                    _metadata("process_name", "name", _NAME),
                    _metadata("thread_name", "name", _NAME),
                    _metadata("process_labels", "labels", _NAME),
                    _metadata("process_sort_index", "sort_index", {"type": "integer"}),
                ],
            },
        },
    },
}


def check_trace(trace: Any) -> list[dict[str, Any]]:
    """Fail unless this is a good trace. Answers its events."""
    jsonschema.validate(trace, TRACE_SCHEMA)
    events: list[dict[str, Any]] = trace["traceEvents"]
    _check_nesting(events)
    _check_flows(events)
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    assert {event["pid"] for event in events} == named, "a process has no name"
    lanes = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert {_place(event) for event in events if event["ph"] == "X"} == lanes, "a lane has no name"
    return events


def slices(events: list[dict[str, Any]], category: str) -> list[dict[str, Any]]:
    """The complete events of a category, in order."""
    return [event for event in events if event["ph"] == "X" and event["cat"] == category]


def inside(outer: dict[str, Any], events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The complete events within another one, in its lane."""
    return [
        event
        for event in events
        if event["ph"] == "X" and event is not outer and _place(event) == _place(outer)
        if outer["ts"] <= event["ts"] and _end(event) <= _end(outer)
    ]


def _check_nesting(events: list[dict[str, Any]]) -> None:
    """Slices of one lane lie inside each other, or apart."""
    lanes: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[_place(event)].append(event)
    for lane in lanes.values():
        around: list[dict[str, Any]] = []
        for event in sorted(lane, key=lambda event: (event["ts"], -event["dur"])):
            while around and _end(around[-1]) <= event["ts"]:
                around.pop()
            assert not around or _end(event) <= _end(around[-1]), f"{event} overlaps {around[-1]}"
            around.append(event)


def _check_flows(events: list[dict[str, Any]]) -> None:
    """Every flow has one start before one end, and each stands in a slice."""
    flows = [event for event in events if event["ph"] in "sf"]
    assert set(Counter((event["id"], event["ph"]) for event in flows).values()) <= {1}
    starts = {event["id"]: event for event in flows if event["ph"] == "s"}
    ends = {event["id"]: event for event in flows if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert all(starts[flow]["ts"] < ends[flow]["ts"] for flow in starts)
    by_place: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            by_place[_place(event)].append(event)
    for flow in flows:
        assert any(event["ts"] <= flow["ts"] < _end(event) for event in by_place[_place(flow)]), flow


def _place(event: dict[str, Any]) -> tuple[int, int]:
    return event["pid"], event["tid"]


def _end(event: dict[str, Any]) -> int:
    return event["ts"] + event["dur"]
