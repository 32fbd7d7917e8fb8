"""Keeps how each run went, off the way of its operations: they leave a note, which is stored a moment later.

So do the figures that clients report.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Self

import numpy as np

from tinsmith_common.catalog import Catalog
from tinsmith_common.observability import get_logger
from tinsmith_common.watch import Report, RunHistory, Step
from tinsmith_train.engine.types import ForwardBackward, ForwardBackwardResult
from tinsmith_train.services.reports import reports_of

_log = get_logger(__name__)

_FLUSH_EVERY_S = 1.0
_OPEN_RUNS = 4096
"""Runs whose passes are kept until their step comes; of the others, the oldest lose theirs."""
_PASSES = 64
"""Passes of one run that are kept apart; more are added up, as their step will do it."""
_NOTES = 100_000
"""Notes that wait for the store. When it is away for long, the oldest go."""
MAX_NAMES = 32
"""Of figures that are kept for one run."""


@dataclass(frozen=True)
class PassNote:
    """What a forward_backward tells of its run. Sums are over its datums; see `Step`."""

    run_id: str
    seq_id: int
    losses: frozenset[str]
    loss_sum: float
    weight_sum: float | None
    advantage_sum: float
    advantages: int
    datums: int
    tokens: int

    def __add__(self, other: Self) -> "PassNote":
        weights = (self.weight_sum, other.weight_sum)
        return PassNote(
            self.run_id,
            max(self.seq_id, other.seq_id),
            self.losses | other.losses,
            self.loss_sum + other.loss_sum,
            None if weights[0] is None or weights[1] is None else weights[0] + weights[1],
            self.advantage_sum + other.advantage_sum,
            self.advantages + other.advantages,
            self.datums + other.datums,
            self.tokens + other.tokens,
        )


class HistoryService:
    """Takes notes from any thread, and stores them once a second from the event loop."""

    def __init__(self, history: RunHistory, catalog: Catalog) -> None:
        self._history = history
        self._catalog = catalog
        self._reports: deque[tuple[str, Report]] = deque(maxlen=_NOTES)
        self._notes: deque[PassNote | Step] = deque(maxlen=_NOTES)
        self._passes: OrderedDict[str, list[PassNote]] = OrderedDict()
        self._steps: list[Step] = []

    def note_pass(self, seq_id: int, item: ForwardBackward, result: ForwardBackwardResult) -> None:
        """A forward_backward has ended well. A forward alone adds no gradient and is left out."""
        if not item.forward_only:
            self._notes.append(_note_of(seq_id, item, result))

    def note_step(self, run_id: str, seq_id: int, metrics: dict[str, float]) -> None:
        """An optimizer step has been applied."""
        step = metrics.get("optimizer_step")
        self._notes.append(
            Step(
                run_id,
                seq_id,
                datetime.now(UTC),
                grad_norm=_finite(metrics.get("grad_norm")),
                learning_rate=_finite(metrics.get("learning_rate")),
                optimizer_step=None if step is None else int(step),
            )
        )

    def note_events(self, owner: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Take the figures out of a client's events. Those of runs that are not the owner's go later."""
        self._reports.extend((owner, report) for report in reports_of(events))

    async def run(self) -> None:
        """Store notes until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            try:
                await self._store(self._settled_steps())
                await self._store_reports()
            except Exception:
                # Nothing depends on it, so it must not end for good.
                _log.exception("the history of some steps could not be stored")

    async def stop(self) -> None:
        """Store what is left."""
        try:
            await self.flush()
        except Exception:
            _log.exception("the history of the last steps could not be stored")

    async def flush(self) -> None:
        """Store everything that was noted."""
        await self._store([*self._settled_steps(), *self._settled_steps()])
        await self._store_reports()

    def _settled_steps(self) -> list[Step]:
        """Steps noted before the last call. A pass may be encoded, and noted, a little after the step behind it."""
        settled, self._steps = self._steps, []
        while self._notes:
            note = self._notes.popleft()
            if isinstance(note, Step):
                self._steps.append(note)
            else:
                self._keep(note)
        return [self._with_passes(step) for step in settled]

    def _keep(self, note: PassNote) -> None:
        passes = self._passes.setdefault(note.run_id, [])
        self._passes.move_to_end(note.run_id)
        passes.append(note)
        if len(passes) > _PASSES:
            passes[:] = [_total(passes)]
        if len(self._passes) > _OPEN_RUNS:
            self._passes.popitem(last=False)

    def _with_passes(self, step: Step) -> Step:
        passes = self._passes.pop(step.run_id, [])
        if later := [note for note in passes if note.seq_id > step.seq_id]:
            self._passes[step.run_id] = later
        before = [note for note in passes if note.seq_id < step.seq_id]
        if not before:
            return step
        total = _total(before)
        return Step(
            step.run_id,
            step.seq_id,
            step.at,
            loss="+".join(sorted(total.losses)),
            loss_sum=_finite(total.loss_sum),
            weight_sum=_finite(total.weight_sum),
            advantage_mean=_finite(total.advantage_sum / total.advantages) if total.advantages else None,
            datums=total.datums,
            tokens=total.tokens,
            grad_norm=step.grad_norm,
            learning_rate=step.learning_rate,
            optimizer_step=step.optimizer_step,
        )

    async def _store(self, steps: Sequence[Step]) -> None:
        if steps:
            await self._history.add_steps(steps)

    async def _store_reports(self) -> None:
        waiting = [self._reports.popleft() for _ in range(len(self._reports))]
        allowed: dict[tuple[str, str], set[str]] = {}
        kept: list[Report] = []
        for owner, report in waiting:
            of = owner, report.run_id
            if of not in allowed:
                allowed[of] = await self._names_of(*of)
            names = allowed[of]
            if report.name in names or (names and len(names) <= MAX_NAMES):
                names.add(report.name)
                kept.append(report)
        if kept:
            await self._history.add_reports(kept)

    async def _names_of(self, owner: str, run_id: str) -> set[str]:
        """Names that the run has, and an empty one that stands for the run itself; nothing if it is not the owner's."""
        run = await self._catalog.runs.get(run_id)
        if run is None or run.owner != owner:
            return set()
        return {"", *await self._history.report_names(run_id)}


def _note_of(seq_id: int, item: ForwardBackward, result: ForwardBackwardResult) -> PassNote:
    weight_sum = None
    if item.loss == "cross_entropy":
        weights = [datum.inputs.get("weights") for datum in item.datums]
        weight_sum = sum(
            float(datum.targets.size) if weight is None else float(np.sum(weight, dtype=np.float64))
            for datum, weight in zip(item.datums, weights, strict=True)
        )
    advantages = [datum.inputs["advantages"] for datum in item.datums if "advantages" in datum.inputs]
    return PassNote(
        item.adapter_id,
        seq_id,
        frozenset([item.loss]),
        result.metrics["loss:sum"],
        weight_sum,
        sum(float(np.sum(values, dtype=np.float64)) for values in advantages),
        sum(int(np.count_nonzero(values)) for values in advantages),
        len(item.datums),
        sum(datum.tokens.size for datum in item.datums),
    )


def _total(notes: Sequence[PassNote]) -> PassNote:
    total = notes[0]
    for note in notes[1:]:
        total += note
    return total


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
