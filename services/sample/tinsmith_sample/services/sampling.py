"""`asample`: accepted at once, carried out in the background, answered through a promise."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from tinsmith_common.catalog import SamplingSessionRecord, Usage, UsageKind
from tinsmith_common.errors import InvalidInput, Leaving, Overloaded, TinsmithError
from tinsmith_common.futures import (
    CLONE_STRIDE,
    PROTOBUF,
    FutureStore,
    PendingPromise,
    PromiseKind,
    QueueState,
    Work,
    completion_queue,
)
from tinsmith_common.http.errors import describe_validation
from tinsmith_common.observability import get_logger, received_at
from tinsmith_common.wire.futures import Promise
from tinsmith_common.wire.sampling import SampleRequest
from tinsmith_sample.engines.base import Adapter, EngineLost, SampleResult, SampleSpec, SamplingEngine
from tinsmith_sample.engines.checks import MAX_SAMPLES
from tinsmith_sample.metrics import SampleMetrics
from tinsmith_sample.services.adapters import AdapterLocator
from tinsmith_sample.services.admission import Engines
from tinsmith_sample.services.conversion import to_spec, to_wire
from tinsmith_sample.services.sessions import SamplingSessions

_log = get_logger(__name__)

_ENGINE_ATTEMPTS = 3
_AT_A_STRETCH = 50


@dataclass(frozen=True)
class QueueLimits:
    """What may wait at a time: so many requests, with so many bytes of bodies in all."""

    requests: int
    body_bytes: int = 2**40


@dataclass
class _Running:
    """A sample that was accepted and has not ended. `admitted`: the engine has it, or its adapter is on its way."""

    body_bytes: int
    task: asyncio.Task[None]
    admitted: bool = False


class SamplingService:
    """Runs samples on the engine of their base model. Work that a restart interrupts is taken up again."""

    def __init__(
        self,
        futures: FutureStore,
        sessions: SamplingSessions,
        adapters: AdapterLocator,
        engines: Engines,
        metrics: SampleMetrics,
        limits: QueueLimits,
    ) -> None:
        self._futures = futures
        self._sessions = sessions
        self._adapters = adapters
        self._engines = engines
        self._metrics = metrics
        self._limits = limits
        self._running: dict[str, _Running] = {}
        self._queued_bytes = 0
        self._draining = False
        self._open = asyncio.Event()

    @property
    def running(self) -> frozenset[str]:
        """Request ids of what was accepted here and has not ended."""
        return frozenset(self._running)

    def open(self) -> None:
        """The engines are up: begin to work. What was accepted before has waited for this."""
        self._open.set()

    async def submit(self, owner: str, body: bytes) -> Promise:
        """Accept an `asample` body. The same (session, seq_id) again answers the same promise.

        Raises `InvalidInput` for a body that is no sample request, `Overloaded` when too many wait and `Leaving`
        while draining; what else is wrong with it is said through the promise.
        """
        if self._draining:
            raise Leaving("this replica is about to end; send the request again, for another one to take")
        request = _parse(body)
        self._check_room(len(body))
        request_id = f"{request.sampling_session_id}:{request.seq_id}"
        if not await self._sessions.is_of(owner, request.sampling_session_id):
            # It fails when it runs, under a name that keeps it from taking the place of the session's own requests.
            request_id = f"{owner}/{request_id}"
        submission = await self._futures.submit(request_id, PromiseKind.SAMPLE, owner, body)
        if submission.created:
            self._start(request_id, owner, request, len(body))
        ids = [f"{request_id}:{index}" for index in range(request.num_samples)]
        return Promise(request_id=request_id, sample_sequence_ids=ids)

    async def take_up(self, promises: Sequence[PendingPromise]) -> None:
        """Run what another process left unfinished."""
        for number, item in enumerate(promises):
            if number % _AT_A_STRETCH == 0:
                await asyncio.sleep(0)  # others have their turn, the next heartbeat among them
            try:
                self._start(item.request_id, item.owner, _parse(item.request), len(item.request))
            except InvalidInput as error:
                queue = _queue(item.request_id)
                await self._futures.fail(item.request_id, error.message, error.category, queue=queue)

    async def cancel(self, owner: str, request_id: str) -> None:
        """Fail an unfinished sample and take its work out of the engine. Anything else stays as it is."""
        # The promise first: a task that is cancelled before would leave it open if this process ended now.
        if not await self._futures.cancel(request_id, owner, queue=_queue(request_id)):
            return
        self._metrics.cancelled.inc()
        self._drop(request_id)

    def describe_wait(self, request_id: str) -> QueueState | None:
        """What a sample of this replica waits for, if it has to."""
        item = self._running.get(request_id)
        if item is None or item.admitted:
            return None
        return QueueState("paused_capacity", "the engine is full; sampling sessions have their turns")

    def ended_elsewhere(self, request_id: str) -> None:
        """Another process has ended this promise: it was cancelled there, or finished."""
        self._drop(request_id)

    def let_go(self, request_ids: Iterable[str]) -> None:
        """Drop work that is not ours any more. Its promises stay as they are."""
        for request_id in request_ids:
            self._drop(request_id)

    async def drain(self, grace_s: float) -> None:
        """Take no more, hand back what the engine has not begun, and wait up to `grace_s` for the rest."""
        self._draining = True
        waiting = [request_id for request_id, item in self._running.items() if not item.admitted]
        self.let_go(waiting)
        await self._futures.leases.release(self._futures.holder or "", waiting)
        if tasks := [item.task for item in self._running.values()]:
            _log.info("finishing what runs", samples=len(tasks), handed_back=len(waiting), at_most_s=grace_s)
            await asyncio.wait(tasks, timeout=grace_s)

    async def stop(self) -> None:
        """Drop running work. Its promises stay open for another process."""
        self._draining = True
        tasks = [item.task for item in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_room(self, body_bytes: int) -> None:
        if len(self._running) >= self._limits.requests:
            raise Overloaded(f"{len(self._running)} samples are waiting; send this one again later")
        if self._running and self._queued_bytes + body_bytes > self._limits.body_bytes:
            raise Overloaded(
                f"samples of {self._queued_bytes / 2**20:.0f} MiB are waiting; send this one again later"
            )

    def _start(self, request_id: str, owner: str, request: SampleRequest, body_bytes: int) -> None:
        if request_id in self._running:
            return
        task = asyncio.create_task(self._run(request_id, owner, request))
        self._running[request_id] = _Running(body_bytes, task)
        self._queued_bytes += body_bytes
        self._metrics.queue.set(len(self._running))
        task.add_done_callback(lambda ended: self._finished(request_id, ended))

    def _drop(self, request_id: str) -> None:
        if (item := self._running.get(request_id)) is not None:
            self._forget(request_id)
            item.task.cancel()

    def _forget(self, request_id: str) -> None:
        self._queued_bytes -= self._running.pop(request_id).body_bytes
        self._metrics.queue.set(len(self._running))

    def _finished(self, request_id: str, task: asyncio.Task[None]) -> None:
        if (item := self._running.get(request_id)) is not None and item.task is task:
            self._forget(request_id)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a result could not be stored", request_id=request_id, exc_info=error)

    async def _run(self, request_id: str, owner: str, request: SampleRequest) -> None:
        """Carry out one request and end its promise, whatever happens (except being stopped)."""
        start, arrived_at, model = time.perf_counter(), received_at(), "unknown"
        try:
            session = await self._sessions.get(owner, request.sampling_session_id)
            model = session.base_model
            spec = to_spec(request)
            result, work = await self._sample(request_id, session, spec)
        except TinsmithError as error:
            await self._futures.fail(request_id, error.message, error.category, queue=_queue(request_id))
            self._metrics.finished.labels(model, error.category).inc()
        except Exception as error:
            _log.exception("sample failed", request_id=request_id)
            message = f"internal error ({type(error).__name__}); the server's log has the details"
            await self._futures.fail(request_id, message, "server", queue=_queue(request_id))
            self._metrics.finished.labels(model, "server").inc()
        else:
            payload = to_wire(result, spec, request.target_prompt_logprobs)
            await self._futures.resolve(request_id, payload, PROTOBUF, queue=_queue(request_id), work=work)
            self._metrics.done(model, spec, result, arrived_at)
        self._metrics.seconds.labels(model).observe(time.perf_counter() - start)

    async def _sample(
        self, request_id: str, session: SamplingSessionRecord, spec: SampleSpec
    ) -> tuple[SampleResult, Work]:
        if session.base_model not in self._engines:
            raise InvalidInput(f"base model {session.base_model!r} is not served here any more")
        await self._open.wait()
        async with self._engines.place(session.base_model, session.id, spec.num_samples):
            if (item := self._running.get(request_id)) is not None:
                item.admitted = True
            started_at = datetime.now(UTC)
            result = await self._sample_on_weights(session, spec)
            return result, Work(started_at, datetime.now(UTC), usage_of(session, spec, result))

    async def _sample_on_weights(self, session: SamplingSessionRecord, spec: SampleSpec) -> SampleResult:
        engine = self._engines[session.base_model]
        while True:
            adapter = await self._adapters.locate(session)
            try:
                return await sample_on(engine, spec, adapter)
            except TinsmithError:
                # Inflight weights can go while they are being loaded; then newer ones are there.
                if await self._adapters.locate(session) == adapter:
                    raise


def usage_of(session: SamplingSessionRecord, spec: SampleSpec, result: SampleResult) -> Usage:
    """What a sample is counted as: its prompt once, however many completions it got, and all their tokens."""
    cached = min(result.cached_tokens, len(spec.prompt))
    quantities = {
        UsageKind.PREFILL: len(spec.prompt) - cached,
        UsageKind.PREFILL_CACHED: cached,
        UsageKind.SAMPLED: sum(len(item.tokens) for item in result.completions),
    }
    return Usage(session.session_id, session.base_model, quantities)


async def sample_on(engine: SamplingEngine, spec: SampleSpec, adapter: Adapter | None) -> SampleResult:
    """Sample, again if the engine is lost meanwhile: it comes up again by itself."""
    for _ in range(_ENGINE_ATTEMPTS - 1):
        try:
            return await engine.sample(spec, adapter)
        except EngineLost:
            pass
    # A request that keeps killing the engine must not do so for ever.
    return await engine.sample(spec, adapter)


def _queue(request_id: str) -> str | None:
    """The completion queue of a sample, whose id is its sampling session and `seq_id`."""
    session_id, _, seq_id = request_id.rpartition("/")[2].rpartition(":")
    return completion_queue(session_id, int(seq_id) // CLONE_STRIDE) if seq_id.isdecimal() else None


def _parse(body: bytes) -> SampleRequest:
    try:
        request = SampleRequest.model_validate_json(body)
    except ValidationError as error:
        raise InvalidInput(describe_validation(error)) from error
    if request.num_samples > MAX_SAMPLES:
        raise InvalidInput(f"num_samples must be from 1 to {MAX_SAMPLES}, not {request.num_samples}")
    return request
