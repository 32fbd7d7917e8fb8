"""Runs the lanes of all models on one backend: heads are taken together, passes run as one batch."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from tinsmith_common.errors import EngineFailure, TinsmithError
from tinsmith_common.futures import FutureStore, Work
from tinsmith_common.observability import get_logger
from tinsmith_train.backends.base import TrainBackend, WorkerLost
from tinsmith_train.engine.types import ForwardBackwardResult
from tinsmith_train.scheduler.lanes import Farewell, Lane
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.scheduler.operations import Operation, Pass, Rejected, Task

_log = get_logger(__name__)

ModelsLost = Callable[[Sequence[str], TinsmithError], Awaitable[None]]
"""Hears which models ended with their worker, and why."""


class Scheduler:
    """The one writer to a backend.

    `submit` wakes it at once; a cycle takes the next ready operation of every lane. What a model's lane
    still misses never holds up another lane.
    """

    def __init__(
        self,
        backend: TrainBackend,
        futures: FutureStore,
        metrics: SchedulerMetrics,
        tokens_per_cycle: int,
        lane_gap_s: float,
        models_lost: ModelsLost | None = None,
    ) -> None:
        self._backend = backend
        self._futures = futures
        self._metrics = metrics
        self._tokens_per_cycle = tokens_per_cycle
        self._lane_gap_s = lane_gap_s
        self._models_lost = models_lost
        self._lanes: dict[str, Lane] = {}
        self._arrived = asyncio.Event()

    def open_lane(self, model_id: str) -> None:
        """Begin a model's lane at `seq_id` 0, which is its creation."""
        self._lanes.setdefault(model_id, Lane(model_id))

    def close_lane(self, model_id: str, farewell: Farewell | None = None) -> None:
        """Run what has arrived for the model, then free its adapter and keep the promise of the farewell."""
        if lane := self._lanes.get(model_id):
            lane.closing = True
            lane.farewell = lane.farewell or farewell
            self._arrived.set()

    def has_lane(self, model_id: str) -> bool:
        """Whether the model takes operations."""
        lane = self._lanes.get(model_id)
        return lane is not None and not lane.closing

    def submit(self, operation: Operation) -> bool:
        """Queue an operation of an open lane. False when its `seq_id` has had its turn already."""
        added = self._lanes[operation.model_id].add(operation)
        self._metrics.queued.set(self._waiting())
        self._arrived.set()
        return added

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wait_for_work()
            while batch := self._take():
                await self._execute(batch)
            await self._finish_closing_lanes()

    async def _wait_for_work(self) -> None:
        """Until something arrives, or a lane has waited long enough for what never arrived."""
        try:
            async with asyncio.timeout_at(self._next_gap_at()):
                await self._arrived.wait()
        except TimeoutError:
            self._skip_old_gaps()
        self._arrived.clear()

    def _next_gap_at(self) -> float | None:
        """When the next gap is given up, on the loop's clock; None while no lane is stalled."""
        stalled = [since for lane in self._lanes.values() if (since := lane.stalled_since) is not None]
        if not stalled:
            return None
        wait_s = min(stalled) + self._lane_gap_s - time.monotonic()
        return asyncio.get_running_loop().time() + max(wait_s, 0.0)

    def _skip_old_gaps(self) -> None:
        """A submission that was refused before its `seq_id` was known, or lost on its way, used its turn up."""
        oldest = time.monotonic() - self._lane_gap_s
        for lane in self._lanes.values():
            if (since := lane.stalled_since) is not None and since <= oldest:
                gap = lane.skip_gap()
                self._metrics.gaps.inc()
                _log.warning("gave up operations", model=lane.model_id, first=gap.first, last=gap.last)

    async def fail_waiting(self, error: TinsmithError) -> None:
        """End every promise that is still queued."""
        for lane in self._lanes.values():
            for operation in lane.drain():
                await self._fail(operation, error)
            # Whatever ends the waiting has taken the adapter with it.
            await self._say_farewell(lane)

    def _take(self) -> list[Operation]:
        lanes = [lane for lane in self._lanes.values() if lane.ready]
        if not lanes:
            return []
        budget = self._tokens_per_cycle // len(lanes)
        return [operation for lane in lanes for operation in lane.take(budget)]

    async def _execute(self, batch: Sequence[Operation]) -> None:
        passes: list[tuple[Operation, Pass]] = []
        for operation in batch:
            match operation.work:
                case Pass() as work:
                    passes.append((operation, work))
                case Task() as work:
                    await self._run_task(operation, work)
                case Rejected(error):
                    await self._fail(operation, error)
        if passes:
            await self._run_passes(passes)
        self._metrics.queued.set(self._waiting())

    async def _run_task(self, operation: Operation, task: Task) -> None:
        started_at = datetime.now(UTC)
        try:
            payload = await task.run(self._backend)
        except Exception as error:
            await self._fail(operation, as_tinsmith_error(error), Work(started_at, datetime.now(UTC)))
            if isinstance(error, WorkerLost):
                await self._restart_backend(error)
        else:
            work = Work(started_at, datetime.now(UTC), operation.usage)
            await self._futures.resolve(operation.request_id, payload, task.media_type, work=work)
        self._metrics.task_seconds.observe(_seconds_since(started_at))

    async def _run_passes(self, passes: Sequence[tuple[Operation, Pass]]) -> None:
        started_at = datetime.now(UTC)
        lost: WorkerLost | None = None
        results: Sequence[ForwardBackwardResult | TinsmithError]
        try:
            results = await self._backend.forward_backward([work.item for _, work in passes])
        except Exception as error:
            results = [as_tinsmith_error(error)] * len(passes)
            lost = error if isinstance(error, WorkerLost) else None
        computed_at = datetime.now(UTC)
        seconds = (computed_at - started_at).total_seconds()
        self._metrics.observe_pass(len(passes), sum(work.tokens for _, work in passes), seconds)
        for (operation, work), result in zip(passes, results, strict=True):
            if isinstance(result, TinsmithError):
                await self._fail(operation, result, Work(started_at, computed_at))
            else:
                ran = Work(started_at, computed_at, operation.usage)
                payload = work.encode(result)
                await self._futures.resolve(operation.request_id, payload, work.media_type, work=ran)
        if lost is not None:
            await self._restart_backend(lost)

    async def _restart_backend(self, error: WorkerLost) -> None:
        """The worker's memory is gone: every model ends with a clear error, and new ones can begin."""
        _log.error("training worker lost", error=error.message, models=len(self._lanes))
        await self.fail_waiting(error)
        lost = list(self._lanes)
        self._lanes.clear()
        if self._models_lost is not None:
            await self._models_lost(lost, error)
        await self._backend.start()

    async def _finish_closing_lanes(self) -> None:
        for lane in [lane for lane in self._lanes.values() if lane.closing]:
            del self._lanes[lane.model_id]
            gap = TinsmithError(f"model {lane.model_id} was closed before an earlier operation arrived")
            for operation in lane.drain():
                await self._fail(operation, gap)
            await self._backend.delete_adapter(lane.model_id)
            await self._say_farewell(lane)

    async def _say_farewell(self, lane: Lane) -> None:
        if lane.farewell is not None:
            await self._futures.resolve(lane.farewell.request_id, lane.farewell.payload)

    async def _fail(self, operation: Operation, error: TinsmithError, work: Work | None = None) -> None:
        level = _log.info if error.category == "user" else _log.error
        level("operation failed", request_id=operation.request_id, error=error.message)
        await self._futures.fail(operation.request_id, error.message, error.category, work=work)

    def _waiting(self) -> int:
        return sum(lane.waiting for lane in self._lanes.values())


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def as_tinsmith_error(error: Exception) -> TinsmithError:
    """What to end a promise with: every one that was recorded must end, or its client waits for ever."""
    if isinstance(error, TinsmithError):
        return error
    _log.error("unexpected error in an operation", exc_info=error)
    return EngineFailure(
        f"internal error ({type(error).__name__}: {error}); the server's log has the details"
    )
