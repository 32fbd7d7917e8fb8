"""Runs the lanes of all models on one backend: heads are taken together, passes run as one batch."""

import asyncio
import time
from collections.abc import Sequence

from tinsmith_common.errors import EngineFailure, TinsmithError
from tinsmith_common.futures import FutureStore
from tinsmith_common.observability import get_logger
from tinsmith_train.backends.base import TrainBackend, WorkerLost
from tinsmith_train.engine.types import ForwardBackwardResult
from tinsmith_train.scheduler.lanes import Lane
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.scheduler.operations import Operation, Pass, Rejected, Task

_log = get_logger(__name__)


class Scheduler:
    """The one writer to a backend.

    `submit` wakes it at once; a cycle takes the next ready operation of every lane. What a model's lane
    still misses never holds up another lane.
    """

    def __init__(
        self, backend: TrainBackend, futures: FutureStore, metrics: SchedulerMetrics, tokens_per_cycle: int
    ) -> None:
        self._backend = backend
        self._futures = futures
        self._metrics = metrics
        self._tokens_per_cycle = tokens_per_cycle
        self._lanes: dict[str, Lane] = {}
        self._arrived = asyncio.Event()

    def open_lane(self, model_id: str) -> None:
        """Begin a model's lane at `seq_id` 0, which is its creation."""
        self._lanes.setdefault(model_id, Lane(model_id))

    def close_lane(self, model_id: str) -> None:
        """Run what has arrived for the model, then free its adapter."""
        if lane := self._lanes.get(model_id):
            lane.closing = True
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
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._take():
                await self._execute(batch)
            await self._finish_closing_lanes()

    async def fail_waiting(self, error: TinsmithError) -> None:
        """End every promise that is still queued."""
        for lane in self._lanes.values():
            for operation in lane.drain():
                await self._fail(operation, error)

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
        start = time.perf_counter()
        try:
            payload = await task.run(self._backend)
        except Exception as error:
            await self._fail(operation, as_tinsmith_error(error))
            if isinstance(error, WorkerLost):
                await self._restart_backend(error)
        else:
            await self._futures.resolve(operation.request_id, payload, task.media_type)
        self._metrics.task_seconds.observe(time.perf_counter() - start)

    async def _run_passes(self, passes: Sequence[tuple[Operation, Pass]]) -> None:
        start = time.perf_counter()
        lost: WorkerLost | None = None
        results: Sequence[ForwardBackwardResult | TinsmithError]
        try:
            results = await self._backend.forward_backward([work.item for _, work in passes])
        except Exception as error:
            results = [as_tinsmith_error(error)] * len(passes)
            lost = error if isinstance(error, WorkerLost) else None
        seconds = time.perf_counter() - start
        self._metrics.observe_pass(len(passes), sum(work.tokens for _, work in passes), seconds)
        for (operation, work), result in zip(passes, results, strict=True):
            if isinstance(result, TinsmithError):
                await self._fail(operation, result)
            else:
                await self._futures.resolve(operation.request_id, work.encode(result), work.media_type)
        if lost is not None:
            await self._restart_backend(lost)

    async def _restart_backend(self, error: WorkerLost) -> None:
        """The worker's memory is gone: every model ends with a clear error, and new ones can begin."""
        _log.error("training worker lost", error=error.message, models=len(self._lanes))
        await self.fail_waiting(error)
        self._lanes.clear()
        await self._backend.start()

    async def _finish_closing_lanes(self) -> None:
        for lane in [lane for lane in self._lanes.values() if lane.closing]:
            del self._lanes[lane.model_id]
            gap = TinsmithError(f"model {lane.model_id} was closed before an earlier operation arrived")
            for operation in lane.drain():
                await self._fail(operation, gap)
            await self._backend.delete_adapter(lane.model_id)

    async def _fail(self, operation: Operation, error: TinsmithError) -> None:
        level = _log.info if error.category == "user" else _log.error
        level("operation failed", request_id=operation.request_id, error=error.message)
        await self._futures.fail(operation.request_id, error.message, error.category)

    def _waiting(self) -> int:
        return sum(lane.waiting for lane in self._lanes.values())


def as_tinsmith_error(error: Exception) -> TinsmithError:
    """What to end a promise with: every one that was recorded must end, or its client waits for ever."""
    if isinstance(error, TinsmithError):
        return error
    _log.error("unexpected error in an operation", exc_info=error)
    return EngineFailure(
        f"internal error ({type(error).__name__}: {error}); the server's log has the details"
    )
