"""What the page at `/ui` shows of training: of the caller's, or of everybody's to an operator."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Literal

from tinsmith_common.auth import Principal
from tinsmith_common.catalog import RunRecord, SessionRecord
from tinsmith_common.errors import NotFound
from tinsmith_common.stores import Stores
from tinsmith_common.watch import Failure, Step
from tinsmith_common.wire.watch import (
    WatchedFailure,
    WatchedLane,
    WatchedReport,
    WatchedRun,
    WatchedStep,
    WatchRunHistory,
    WatchTraining,
)
from tinsmith_train.services.registry import ModelRegistry

MAX_RUNS = 50
MAX_FAILURES = 50


class WatchService:
    """Reads, and changes nothing."""

    def __init__(self, registry: ModelRegistry, stores: Stores) -> None:
        self._registry = registry
        self._stores = stores

    async def training(self, caller: Principal, *, ready: bool, trained_tokens: int) -> WatchTraining:
        """Newest runs, open lanes, newest failures. Tokens are counted of everybody, since the service started."""
        owner = None if caller.is_operator else caller.owner
        page = await self._stores.catalog.runs.newest(owner, MAX_RUNS)
        sessions = await self._stores.catalog.sessions.by_id(sorted({run.session_id for run in page.items}))
        last = await self._stores.history.last_steps([run.id for run in page.items])
        failures = await self._stores.failures.newest(owner, MAX_FAILURES)
        return WatchTraining(
            owner=caller.owner,
            operator=caller.is_operator,
            at=datetime.now(UTC),
            ready=ready,
            runs=[self._run(run, sessions.get(run.session_id), last.get(run.id)) for run in page.items],
            runs_total=page.total,
            lanes=self._lanes(owner),
            failures=[_failure(item) for item in failures],
            trained_tokens=trained_tokens if caller.is_operator else None,
        )

    async def history(
        self, caller: Principal, run_id: str, after: int, reported_after: datetime | None = None
    ) -> WatchRunHistory:
        """One run's curves. Raises `NotFound`."""
        run = await self._stores.catalog.runs.get(run_id)
        if run is None or not (caller.is_operator or run.owner == caller.owner):
            raise NotFound(f"no training run {run_id}")
        steps = await self._stores.history.steps(run_id, after)
        reports = await self._stores.history.reports(run_id, reported_after)
        return WatchRunHistory(
            run_id=run_id,
            steps=[_step(step) for step in steps],
            reports=[WatchedReport.model_validate(asdict(report)) for report in reports],
        )

    def _run(self, run: RunRecord, session: SessionRecord | None, last: Step | None) -> WatchedRun:
        return WatchedRun(
            run_id=run.id,
            session_id=run.session_id,
            owner=run.owner,
            display_name=None if session is None else session.display_name,
            base_model=run.base_model,
            rank=run.rank,
            created_at=run.created_at,
            last_request_at=run.last_request_at,
            state=self._state(run),
            last_step=None if last is None else _step(last),
        )

    def _state(self, run: RunRecord) -> Literal["loaded", "lost", "ended"]:
        if run.corrupted:
            return "lost"
        return "loaded" if self._registry.find(run.owner, run.id) is not None else "ended"

    def _lanes(self, owner: str | None) -> list[WatchedLane]:
        return [
            WatchedLane(
                run_id=lane.model_id,
                base_model=base.name,
                state=lane.state,
                waiting=lane.waiting,
                waiting_tokens=lane.waiting_tokens,
                missing=lane.missing,
            )
            for base in self._registry.bases.values()
            for lane in base.scheduler.lanes()
            if owner in (None, lane.owner)
        ]


def _step(step: Step) -> WatchedStep:
    return WatchedStep.model_validate(asdict(step))


def _failure(item: Failure) -> WatchedFailure:
    return WatchedFailure.model_validate(asdict(item) | {"request_type": item.kind})
