"""Runs the lanes of all models on one backend: they take turns, and passes run together as one batch."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tinsmith_common.errors import EngineFailure, TinsmithError
from tinsmith_common.futures import FutureStore, QueueState, Work
from tinsmith_common.observability import get_logger
from tinsmith_train.backends.base import TrainBackend, WorkerLost
from tinsmith_train.engine.types import ForwardBackwardResult, PassPart
from tinsmith_train.scheduler.fairness import FairOrder
from tinsmith_train.scheduler.lanes import Farewell, Lane
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.scheduler.operations import Operation, Pass, Portion, Rejected, Task
from tinsmith_train.scheduler.views import LaneView, view_of
from tinsmith_train.scheduler.waits import describe_wait

_log = get_logger(__name__)

_LARGE_RESULT_TOKENS = 16_384
"""Results of so many tokens are encoded in a thread: it takes milliseconds, which others would wait."""

ModelsLost = Callable[[Sequence[str], TinsmithError], Awaitable[None]]
"""Hears which models ended with their worker, and why."""


@dataclass(frozen=True)
class Pace:
    """How work is cut up and given out.

    part_tokens:  a longer pass runs in parts of about so many tokens, with others' work between them.
    cycle_tokens: passes up to so many tokens run together before anybody's turn is looked at again.
    lane_gap_s:   without an arrival, until the turn of an operation that is missing is given up.
    """

    part_tokens: int
    cycle_tokens: int
    lane_gap_s: float


class Scheduler:
    """The one writer to a backend.

    `submit` wakes it at once. A cycle runs what `FairOrder` gives out; what a model's lane still misses
    never holds up another lane. Results are stored while the next cycle runs.
    """

    def __init__(
        self,
        backend: TrainBackend,
        futures: FutureStore,
        metrics: SchedulerMetrics,
        pace: Pace,
        models_lost: ModelsLost | None = None,
    ) -> None:
        self._backend = backend
        self._futures = futures
        self._metrics = metrics
        self._pace = pace
        self._models_lost = models_lost
        self._order = FairOrder(pace.cycle_tokens)
        self._lanes: dict[str, Lane] = {}
        self._arrived = asyncio.Event()
        self._running: dict[str, tuple[Portion, datetime]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._counted = (0, 0, 0)

    def open_lane(self, model_id: str, owner: str = "") -> None:
        """Begin a model's lane at `seq_id` 0, which is its creation."""
        self._lanes.setdefault(model_id, Lane(model_id, owner, self._pace.part_tokens))

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

    def knows(self, model_id: str, seq_id: int) -> bool:
        """Whether that turn of an open lane is taken, or over."""
        return self._lanes[model_id].knows(seq_id)

    def is_incomplete(self, model_id: str) -> bool:
        """Whether an open lane can run nothing before more of it arrives."""
        return self._lanes[model_id].stalled_since is not None

    def lanes(self) -> tuple[LaneView, ...]:
        """What every lane holds now, for people to watch."""
        running = {portion.operation.model_id for portion, _ in self._running.values()}
        return tuple(view_of(lane, running=lane.model_id in running) for lane in self._lanes.values())

    def submit(self, operation: Operation) -> bool:
        """Queue an operation of an open lane. False when its `seq_id` has had its turn already."""
        added = self._lanes[operation.model_id].add(operation)
        self._count()
        self._arrived.set()
        return added

    def describe(self, model_id: str, seq_id: int) -> QueueState | None:
        """What that operation waits for or does; None when it is not here (any more)."""
        running = self._running.get(f"{model_id}:{seq_id}")
        if running is not None:
            portion = running[0]
            if portion.count == 1:
                return QueueState("active", "it is running")
            return QueueState("active", f"it is running: part {portion.number + 1} of {portion.count}")
        lane = self._lanes.get(model_id)
        if lane is None or seq_id not in lane:
            return None
        return describe_wait(lane, seq_id, self._lanes.values())

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wait_for_work()
            while portions := self._order.take(self._lanes.values()):
                await self._execute(portions)
                await self._free_closed_lanes()
                self._skip_old_gaps()
            await self._free_closed_lanes()

    async def fail_waiting(self, error: TinsmithError) -> None:
        """End every promise that is still queued, or was running when `run` was cancelled."""
        if self._ending:
            await asyncio.gather(*self._ending)
        ended = [portion.operation for portion, _ in self._running.values()]
        ended += [operation for lane in self._lanes.values() for operation in lane.drain()]
        for operation in {operation.request_id: operation for operation in ended}.values():
            await self._fail(operation, error)
        for lane in self._lanes.values():
            # Whatever ends the waiting has taken the adapter with it.
            await self._say_farewell(lane)

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
        wait_s = min(stalled) + self._pace.lane_gap_s - time.monotonic()
        return asyncio.get_running_loop().time() + max(wait_s, 0.0)

    def _skip_old_gaps(self) -> None:
        """A submission that was refused before its `seq_id` was known, or lost on its way, used its turn up."""
        oldest = time.monotonic() - self._pace.lane_gap_s
        for lane in self._lanes.values():
            if (since := lane.stalled_since) is not None and since <= oldest:
                gap = lane.skip_gap()
                self._metrics.gaps.inc()
                _log.warning("gave up operations", model=lane.model_id, first=gap.first, last=gap.last)

    async def _execute(self, portions: Sequence[Portion]) -> None:
        now = datetime.now(UTC)
        for portion in portions:
            _, began = self._running.get(portion.operation.request_id, (portion, now))
            self._running[portion.operation.request_id] = (portion, began)
        match portions[0].operation.work:
            case Task() as task:
                await self._run_task(portions[0].operation, task)
            case Rejected(error):
                await self._fail(portions[0].operation, error)
            case Pass():
                await self._run_passes([(portion, portion.part) for portion in portions if portion.part])
        self._count()

    async def _run_task(self, operation: Operation, task: Task) -> None:
        self._backend.clock.reset()
        called_at = datetime.now(UTC)
        try:
            payload = await task.run(self._backend)
        except Exception as error:
            await self._fail(operation, as_tinsmith_error(error), self._work(called_at))
            if isinstance(error, WorkerLost):
                await self._restart_backend(error)
        else:
            self._end(self._resolve(operation, payload, task.media_type, self._work(called_at)))
        self._metrics.task_seconds.observe(_seconds_since(called_at))

    async def _run_passes(self, passes: Sequence[tuple[Portion, PassPart]]) -> None:
        self._backend.clock.reset()
        called_at = datetime.now(UTC)
        lost: WorkerLost | None = None
        results: Sequence[ForwardBackwardResult | TinsmithError | None]
        try:
            results = await self._backend.forward_backward([part for _, part in passes])
        except Exception as error:
            results = [as_tinsmith_error(error)] * len(passes)
            lost = error if isinstance(error, WorkerLost) else None
        tokens = sum(part.tokens for _, part in passes)
        self._metrics.observe_pass(len(passes), tokens, _seconds_since(called_at))
        work = self._work(called_at)
        for (portion, _), result in zip(passes, results, strict=True):
            self._note_part(portion, result, work)
        if lost is not None:
            await self._restart_backend(lost)

    def _note_part(
        self, portion: Portion, result: ForwardBackwardResult | TinsmithError | None, work: Work
    ) -> None:
        operation = portion.operation
        if result is None:
            # The engine has it from its first part's beginning to its last part's end.
            if portion.number == 0:
                self._running[operation.request_id] = (portion, work.started_at)
            return
        if portion.count > 1:
            work = Work(self._running[operation.request_id][1], work.computed_at)
        if isinstance(result, TinsmithError):
            self._lanes[operation.model_id].give_up_begun()
            self._end(self._fail(operation, result, work))
        else:
            self._end(self._resolve_pass(operation, result, work))

    async def _resolve_pass(self, operation: Operation, result: ForwardBackwardResult, work: Work) -> None:
        assert isinstance(operation.work, Pass)
        encode, media_type = operation.work.encode, operation.work.media_type
        try:
            large = operation.tokens > _LARGE_RESULT_TOKENS
            payload = await asyncio.to_thread(encode, result) if large else encode(result)
        except Exception as error:
            await self._fail(operation, as_tinsmith_error(error), work)
            return
        await self._resolve(operation, payload, media_type, work)

    async def _restart_backend(self, error: WorkerLost) -> None:
        """The worker's memory is gone: every model ends with a clear error, and new ones can begin."""
        _log.error("training worker lost", error=error.message, models=len(self._lanes))
        await self.fail_waiting(error)
        lost = list(self._lanes)
        self._lanes.clear()
        if self._models_lost is not None:
            await self._models_lost(lost, error)
        await self._backend.start()

    async def _free_closed_lanes(self) -> None:
        """Free a closed lane as soon as all that can run of it has run, whatever other lanes do."""
        for lane in [lane for lane in self._lanes.values() if lane.closing and not lane.ready]:
            del self._lanes[lane.model_id]
            gap = TinsmithError(f"model {lane.model_id} was closed before an earlier operation arrived")
            for operation in lane.drain():
                await self._fail(operation, gap)
            await self._free(lane)
            self._count()

    async def _free(self, lane: Lane) -> None:
        try:
            await self._backend.delete_adapter(lane.model_id)
        except WorkerLost as error:
            await self._restart_backend(error)
        except TinsmithError as error:
            _log.error("could not free an adapter", model=lane.model_id, error=error.message)
        await self._say_farewell(lane)

    async def _say_farewell(self, lane: Lane) -> None:
        if lane.farewell is not None:
            await self._futures.resolve(lane.farewell.request_id, lane.farewell.payload)

    def _end(self, ending: Coroutine[Any, Any, None]) -> None:
        """Store how an operation ended while the engine goes on."""

        async def end() -> None:
            try:
                await ending
            except Exception:
                _log.exception("the end of an operation could not be stored")

        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _resolve(self, operation: Operation, payload: bytes, media_type: str, work: Work) -> None:
        self._leave(operation)
        work = Work(work.started_at, work.computed_at, operation.usage)
        await self._futures.resolve(operation.request_id, payload, media_type, work=work)

    async def _fail(self, operation: Operation, error: TinsmithError, work: Work | None = None) -> None:
        self._leave(operation)
        level = _log.info if error.category == "user" else _log.error
        level("operation failed", request_id=operation.request_id, error=error.message)
        await self._futures.fail(operation.request_id, error.message, error.category, work=work)

    def _leave(self, operation: Operation) -> None:
        self._running.pop(operation.request_id, None)
        if operation.ticket is not None:
            operation.ticket.release()

    def _work(self, called_at: datetime) -> Work:
        """When the engine worked, by its own clock as far as that can be: another host's may be wrong."""
        now = datetime.now(UTC)
        started_at, ended_at = self._backend.clock.started_at, self._backend.clock.ended_at
        if started_at is None or ended_at is None or not called_at <= started_at <= ended_at <= now:
            return Work(called_at, now)
        return Work(started_at, ended_at)

    def _count(self) -> None:
        lanes = self._lanes.values()
        now = (len(lanes), sum(lane.waiting for lane in lanes), sum(lane.waiting_tokens for lane in lanes))
        metrics = (self._metrics.lanes, self._metrics.queued, self._metrics.queued_tokens)
        for metric, value, before in zip(metrics, now, self._counted, strict=True):
            metric.inc(value - before)  # other base models have schedulers that count too
        self._counted = now


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
