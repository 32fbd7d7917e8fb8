"""A session's requests in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

A process of the trace is a model or a sampler. Requests that overlap stand in lanes below each other, its threads:
complete events of one thread must nest. Each request is a slice with slices inside for its phases, and a flow
leads from its arrival to its result.
"""

import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, TypeAlias

from tinsmith_common.catalog import SessionRecord
from tinsmith_common.futures import PromiseKind, Span

Event: TypeAlias = dict[str, Any]

SESSION_PID = 1

_NAMES = {
    PromiseKind.CREATE_MODEL: "create_model",
    PromiseKind.FORWARD_BACKWARD: "forward_backward",
    PromiseKind.OPTIM_STEP: "optim_step",
    PromiseKind.SAVE_WEIGHTS: "save_weights",
    PromiseKind.SAVE_WEIGHTS_FOR_SAMPLER: "save_weights_for_sampler",
    PromiseKind.SAVE_WEIGHTS_EXTERNAL: "save_weights_external",
    PromiseKind.LOAD_WEIGHTS: "load_weights",
    PromiseKind.SAMPLE: "sample",
    PromiseKind.CREATE_CUSTOM_LOSS: "create_custom_loss",
}


@dataclass
class _Track:
    """A model or sampler; `lanes` holds when each lane is free again, soonest first."""

    pid: int
    lanes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def lane(self, start: int, end: int) -> tuple[int, bool]:
        """A lane that is free from `start` on, occupied until `end` now, and whether it is a new one."""
        if self.lanes and self.lanes[0][0] <= start:
            _, number = heapq.heapreplace(self.lanes, (end, self.lanes[0][1]))
            return number, False
        number = len(self.lanes) + 1
        heapq.heappush(self.lanes, (end, number))
        return number, True


class TraceWriter:
    """Turns a session's spans, in the order of their arrival, into events. Times are µs since the session began.

    labels: what a model or sampler works with, by its id.
    """

    def __init__(self, session: SessionRecord, exported_at: datetime, labels: Mapping[str, str]) -> None:
        self._session = session
        self._exported_at = exported_at
        self._labels = labels
        self._tracks: dict[str, _Track] = {}
        self._flows = 0

    def head(self) -> str:
        """The beginning of the file, up to its first event."""
        session = self._session
        about = {
            "session_id": session.id,
            "display_name": session.display_name,
            "project_id": session.project_id,
            "sdk_version": session.sdk_version,
            "started_at": session.created_at.isoformat(),
            "exported_at": self._exported_at.isoformat(),
        }
        events = [
            _named("process_name", SESSION_PID, f"session {session.display_name or session.id}"),
            _named("thread_name", SESSION_PID, "session", tid=1),
            self._session_slice(),
        ]
        return (
            f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": [\n'
            + ",\n".join(map(json.dumps, events))
        )

    def render(self, span: Span) -> str:
        """The events of one request, as text to append."""
        return "".join(f",\n{json.dumps(event)}" for event in self._of_span(span))

    def tail(self) -> str:
        """The end of the file."""
        return "\n]}\n"

    def _session_slice(self) -> Event:
        session = self._session
        end = self._us(session.closed_at or self._exported_at)
        args = {"finish_reason": session.finish_reason, "tags": list(session.tags)}
        return _slice("session", "session", SESSION_PID, 1, 0, max(1, end), args)

    def _of_span(self, span: Span) -> Iterator[Event]:
        end = span.stored_at or self._exported_at
        if span.started_at is None or span.computed_at is None:
            phases = ("queued" if span.stored_at else "unfinished",)
            times = self._increasing(span.received_at, end)
        else:
            phases = ("queued", "running", "storing")
            times = self._increasing(span.received_at, span.started_at, span.computed_at, end)
        args: dict[str, Any] = {"state": span.state, **span.quantities}
        if span.error is not None:
            args |= {"error": span.error, "category": span.category}
        yield from self._of_request(span.request_id, span.kind, times, phases, args)

    def _of_request(
        self,
        request_id: str,
        kind: PromiseKind,
        times: list[int],
        phases: tuple[str, ...],
        args: dict[str, Any],
    ) -> Iterator[Event]:
        subject, _, seq_id = request_id.rpartition(":")
        if subject not in self._tracks:
            self._tracks[subject] = _Track(SESSION_PID + 1 + len(self._tracks))
            yield from self._introduce(subject)
        track = self._tracks[subject]
        lane, is_new = track.lane(times[0], times[-1])
        if is_new:
            yield _named("thread_name", track.pid, f"requests {lane}", tid=lane)
        place = track.pid, lane
        name = _NAMES[kind]
        about = {"request_id": request_id, "seq_id": seq_id, **args}
        yield _slice(name, "request", *place, times[0], times[-1], about)
        for phase, (start, end) in zip(phases, pairwise(times), strict=True):
            yield _slice(phase, "phase", *place, start, end, {})
        if len(phases) > 1:
            # Both ends stand at the beginning of a phase, which is inside its slice for every reader.
            self._flows += 1
            flow = {"name": "result", "cat": "flow", "id": self._flows, "pid": track.pid, "tid": lane}
            yield {**flow, "ph": "s", "ts": times[0]}
            yield {**flow, "ph": "f", "bp": "e", "ts": times[-2]}

    def _introduce(self, subject: str) -> Iterator[Event]:
        pid = self._tracks[subject].pid
        yield _named("process_name", pid, _title(subject))
        if subject in self._labels:
            yield _metadata("process_labels", pid, {"labels": self._labels[subject]})
        yield _metadata("process_sort_index", pid, {"sort_index": pid})

    def _increasing(self, *moments: datetime) -> list[int]:
        """The moments in µs, each after the one before: a slice of no length would not nest."""
        times: list[int] = []
        for moment in moments:
            times.append(max(self._us(moment), times[-1] + 1 if times else 0))
        return times

    def _us(self, moment: datetime) -> int:
        return max(0, round((moment - self._session.created_at).total_seconds() * 1e6))


def _title(subject: str) -> str:
    _, _, place = subject.partition(":")
    kind, _, number = place.partition(":")
    title = {"train": "model", "sample": "sampler"}.get(kind)
    return f"{title} {number} ({subject})" if title else subject


def _slice(name: str, category: str, pid: int, tid: int, start: int, end: int, args: dict[str, Any]) -> Event:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": start,
        "dur": end - start,
        "args": args,
    }


def _named(what: str, pid: int, name: str, tid: int = 0) -> Event:
    return _metadata(what, pid, {"name": name}, tid)


def _metadata(what: str, pid: int, args: dict[str, Any], tid: int = 0) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": args}
