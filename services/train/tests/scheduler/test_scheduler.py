"""The scheduler, on a backend that records what it is asked and can be told to fail.

The recorder stands in for faults and orders that a real engine shows too rarely to test for.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest_asyncio
from prometheus_client import CollectorRegistry

from tinsmith_common.errors import EngineFailure, InvalidInput, TinsmithError
from tinsmith_common.futures import FutureStore, Outcome, PromiseKind, QueueState
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores
from tinsmith_train.backends.base import EngineClock, TrainBackend, WorkerLost
from tinsmith_train.engine.types import (
    AdamParams,
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
    PassPart,
)
from tinsmith_train.scheduler.admission import Admission, Bound, Bounds, Ticket
from tinsmith_train.scheduler.lanes import Farewell
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.scheduler.operations import Operation, Pass, Rejected, Task
from tinsmith_train.scheduler.scheduler import Pace, Scheduler


class RecordingBackend:
    """Notes every call; `fail_next` is raised by the next pass; `gate` holds passes back while it is unset."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.calls_take_s = 0.0
        self.called = asyncio.Event()
        self.fail_next: Exception | None = None
        self.items: dict[str, ForwardBackward] = {}
        self.clock = EngineClock()
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> ModelInfo:
        self.calls.append("start")
        return ModelInfo("Recorder", 10, 100, 1)

    async def stop(self) -> None:
        self.calls.append("stop")

    async def create_adapter(self, adapter_id: str, spec: LoraSpec) -> None:
        self.calls.append(f"create {adapter_id} {spec.rank}")

    async def delete_adapter(self, adapter_id: str) -> None:
        self.calls.append(f"delete {adapter_id}")
        self.called.set()

    async def forward_backward(
        self, parts: Sequence[PassPart]
    ) -> Sequence[ForwardBackwardResult | TinsmithError | None]:
        self.items |= {part.pass_id: part.item for part in parts if part.item}
        items = [self.items[part.pass_id] for part in parts]
        self.calls.append("pass " + "+".join(item.adapter_id for item in items))
        self.called.set()
        await self.gate.wait()
        await asyncio.sleep(self.calls_take_s)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        return [_answer(item, part) for item, part in zip(items, parts, strict=True)]

    async def optim_step(self, adapter_id: str, params: AdamParams) -> dict[str, float]:
        self.calls.append(f"step {adapter_id} {params.learning_rate}")
        return {}

    async def save_state(self, adapter_id: str, directory: Path) -> None:
        self.calls.append(f"save {adapter_id} {directory}")

    async def load_state(self, adapter_id: str, directory: Path, *, with_optimizer: bool) -> LoraSpec:
        self.calls.append(f"load {adapter_id} {directory} {with_optimizer}")
        return LoraSpec(8)

    async def export_adapter(self, adapter_id: str, directory: Path) -> None:
        self.calls.append(f"export {adapter_id} {directory}")


def _answer(item: ForwardBackward, part: PassPart) -> ForwardBackwardResult | TinsmithError | None:
    if item.loss == "bad" and part.last > 1:
        return InvalidInput("unknown loss")
    return ForwardBackwardResult((), {"loss:sum": 1.0}) if part.last == len(item.datums) else None


class Bench:
    """A running scheduler with its store."""

    def __init__(self, futures: FutureStore, lane_gap_s: float = 600) -> None:
        self.futures = futures
        self.backend = RecordingBackend()
        self.registry = CollectorRegistry()
        self.scheduler = Scheduler(
            self.backend,
            futures,
            SchedulerMetrics(self.registry),
            Pace(part_tokens=100, cycle_tokens=100, lane_gap_s=lane_gap_s),
        )

    async def submit(
        self, model: str, seq_id: int, work: Pass | Task | Rejected, ticket: Ticket | None = None
    ) -> str:
        request_id = f"{model}:{seq_id}"
        await self.futures.submit(request_id, PromiseKind.FORWARD_BACKWARD, "ann")
        self.scheduler.submit(Operation(request_id, model, seq_id, work, ticket=ticket))
        return request_id

    async def outcome(self, request_id: str) -> Outcome:
        outcome = await self.futures.wait(request_id, "ann", 10)
        assert outcome is not None, f"{request_id} never ended"
        return outcome


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    stores = Stores.build(CommonSettings(metadata_dir=tmp_path), "train")
    await stores.open()
    bench = Bench(stores.futures)
    for model in ("a", "b"):
        bench.scheduler.open_lane(model)
    running = asyncio.create_task(bench.scheduler.run())
    yield bench
    await stop(bench, running)
    await stores.close()


async def stop(bench: Bench, running: asyncio.Task[None]) -> None:
    """As the service stops: what ends meanwhile is stored before the store closes."""
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await bench.scheduler.fail_waiting(EngineFailure("over"))


def a_pass(model: str, loss: str = "cross_entropy", lengths: Sequence[int] = (4, 4)) -> Pass:
    datums = tuple(Datum(np.zeros(n, np.int64), np.zeros(n, np.int64)) for n in lengths)
    return Pass(ForwardBackward(model, datums, loss), lambda _: b"done")


def a_hog(model: str, parts: int = 10, loss: str = "cross_entropy") -> Pass:
    """A pass that takes so many cycles."""
    return a_pass(model, loss, [100] * parts)


def a_step(model: str, rate: float = 0.1) -> Task:
    async def run(backend: TrainBackend) -> bytes:
        await backend.optim_step(model, AdamParams(rate))
        return b"{}"

    return Task(run)


async def test_operations_run_in_order_whatever_order_they_arrive_in(bench: Bench) -> None:
    last = await bench.submit("a", 2, a_step("a", 0.2))
    await bench.submit("a", 1, a_pass("a"))
    await bench.submit("a", 0, a_step("a", 0.1))
    assert (await bench.outcome(last)).error is None
    assert bench.backend.calls == ["step a 0.1", "pass a", "step a 0.2"]


async def test_ready_passes_of_two_models_run_as_one_batch(bench: Bench) -> None:
    bench.backend.gate.clear()
    await bench.submit("a", 0, a_pass("a"))
    await asyncio.sleep(0.05)  # the first pass is under way; what arrives now is merged behind it
    second, third = await bench.submit("a", 1, a_pass("a")), await bench.submit("b", 0, a_pass("b"))
    bench.backend.gate.set()
    assert (await bench.outcome(second)).payload == (await bench.outcome(third)).payload == b"done"
    assert bench.backend.calls == ["pass a", "pass a+b"]


async def test_a_failed_operation_fails_alone_and_the_lane_moves_on(bench: Bench) -> None:
    good = await bench.submit("a", 0, a_pass("a"))
    bad = await bench.submit("a", 1, a_pass("a", loss="bad"))
    rejected = await bench.submit("a", 2, Rejected(InvalidInput("NaN weight")))
    after = await bench.submit("a", 3, a_pass("a"))
    assert (await bench.outcome(good)).payload == b"done"
    assert await bench.outcome(bad) == Outcome(error="unknown loss", category="user")
    assert await bench.outcome(rejected) == Outcome(error="NaN weight", category="user")
    assert (await bench.outcome(after)).payload == b"done"


async def test_a_gap_in_one_lane_does_not_hold_up_another(bench: Bench) -> None:
    await bench.submit("a", 5, a_pass("a"))
    assert (await bench.outcome(await bench.submit("b", 0, a_pass("b")))).payload == b"done"


@pytest_asyncio.fixture
async def impatient(bench: Bench) -> AsyncIterator[Bench]:
    """A second scheduler on the same store, which gives a gap up after a fifth of a second."""
    impatient = Bench(bench.futures, lane_gap_s=0.2)
    impatient.scheduler.open_lane("a")
    running = asyncio.create_task(impatient.scheduler.run())
    yield impatient
    await stop(impatient, running)


async def test_an_operation_that_never_arrives_loses_its_turn(impatient: Bench) -> None:
    began = asyncio.get_running_loop().time()
    first, last = await impatient.submit("a", 2, a_pass("a")), await impatient.submit("a", 5, a_step("a"))
    assert (await impatient.outcome(first)).payload == b"done"
    assert (await impatient.outcome(last)).payload == b"{}"
    assert asyncio.get_running_loop().time() - began >= 0.2
    assert impatient.backend.calls == ["pass a", "step a 0.1"]
    assert impatient.registry.get_sample_value("tinsmith_train_lane_gaps_total") == 2
    late = Operation("a:1", "a", 1, a_pass("a"))
    assert not impatient.scheduler.submit(late), "the lane has gone on"


async def test_every_arrival_gives_a_missing_operation_more_time(impatient: Bench) -> None:
    for seq_id in (4, 3, 2, 1):
        await impatient.submit("a", seq_id, a_step("a", seq_id))
        await asyncio.sleep(0.1)
    assert impatient.backend.calls == []
    await impatient.submit("a", 0, a_step("a", 0))
    await asyncio.sleep(0.05)
    assert impatient.backend.calls == [f"step a {rate}" for rate in range(5)]
    assert impatient.registry.get_sample_value("tinsmith_train_lane_gaps_total") == 0


async def test_an_unexpected_error_fails_the_operation_as_the_server_s_fault(bench: Bench) -> None:
    bench.backend.fail_next = ZeroDivisionError("boom")
    outcome = await bench.outcome(await bench.submit("a", 0, a_pass("a")))
    assert outcome.category == "server"
    assert "ZeroDivisionError" in str(outcome.error)
    assert (await bench.outcome(await bench.submit("a", 1, a_pass("a")))).payload == b"done"


async def test_a_lost_worker_ends_every_waiting_promise_and_is_started_again(bench: Bench) -> None:
    bench.backend.gate.clear()
    running = await bench.submit("a", 0, a_pass("a"))
    waiting = await bench.submit("b", 3, a_pass("b"))
    bench.backend.fail_next = WorkerLost("the worker died")
    bench.backend.gate.set()
    for request_id in (running, waiting):
        assert await bench.outcome(request_id) == Outcome(error="the worker died", category="server")
    await asyncio.sleep(0.05)
    assert bench.backend.calls[-1] == "start"
    assert not bench.scheduler.has_lane("a")


async def test_a_closed_lane_runs_what_arrived_then_frees_the_adapter(bench: Bench) -> None:
    done = await bench.submit("a", 0, a_step("a"))
    late = await bench.submit("a", 2, a_pass("a"))
    bench.scheduler.close_lane("a")
    assert not bench.scheduler.has_lane("a")
    assert (await bench.outcome(done)).error is None
    assert "closed before" in str((await bench.outcome(late)).error)
    await asyncio.sleep(0.05)
    assert bench.backend.calls == ["step a 0.1", "delete a"]


async def test_a_farewell_is_said_when_what_arrived_has_run_and_the_adapter_is_gone(bench: Bench) -> None:
    await bench.futures.submit("a:unload", PromiseKind.UNLOAD_MODEL, "ann")
    step = await bench.submit("a", 0, a_step("a"))
    bench.scheduler.close_lane("a", Farewell("a:unload", b"bye"))
    assert (await bench.outcome("a:unload")).payload == b"bye"
    assert (await bench.outcome(step)).payload == b"{}"
    assert bench.backend.calls == ["step a 0.1", "delete a"]
    assert not bench.scheduler.has_lane("a")


async def test_a_farewell_is_also_said_when_everything_ends(bench: Bench) -> None:
    await bench.futures.submit("a:unload", PromiseKind.UNLOAD_MODEL, "ann")
    stopped = Scheduler(
        bench.backend,
        bench.futures,
        SchedulerMetrics(CollectorRegistry()),
        Pace(100, 100, 600),
    )
    stopped.open_lane("a")
    stopped.close_lane("a", Farewell("a:unload", b"bye"))
    await stopped.fail_waiting(EngineFailure("over"))
    assert (await bench.outcome("a:unload")).payload == b"bye"


async def started(bench: Bench, count: int = 1) -> None:
    """Until the backend has been called that often."""
    async with asyncio.timeout(10):
        while len(bench.backend.calls) < count:
            bench.backend.called.clear()
            await bench.backend.called.wait()


async def test_a_small_pass_waits_for_one_part_of_a_huge_one_not_for_all_of_it(bench: Bench) -> None:
    bench.backend.gate.clear()
    hog = await bench.submit("a", 0, a_hog("a", 10))
    await started(bench)
    small = await bench.submit("b", 0, a_pass("b"))
    bench.backend.gate.set()
    assert (await bench.outcome(small)).payload == (await bench.outcome(hog)).payload == b"done"
    assert bench.backend.calls == ["pass a", "pass b", *["pass a"] * 9]


async def test_hundreds_of_queued_passes_hold_up_no_other_model(bench: Bench) -> None:
    bench.backend.gate.clear()
    queued = [await bench.submit("a", seq_id, a_pass("a", lengths=[60])) for seq_id in range(100)]
    await started(bench)
    small, step = await bench.submit("b", 0, a_pass("b")), await bench.submit("b", 1, a_step("b"))
    bench.backend.gate.set()
    assert (await bench.outcome(step)).payload == b"{}"
    assert (await bench.outcome(small)).payload == b"done"
    assert (await bench.outcome(queued[-1])).payload == b"done"
    first = bench.backend.calls.index("pass b+a")
    assert first == 1
    assert bench.backend.calls.index("step b 0.1") <= first + 6, "a step counts as 256 tokens"


async def test_a_huge_pass_that_fails_on_its_way_ends_there_and_its_lane_moves_on(bench: Bench) -> None:
    bad = await bench.submit("a", 0, a_hog("a", 10, loss="bad"))
    after = await bench.submit("a", 1, a_step("a"))
    assert await bench.outcome(bad) == Outcome(error="unknown loss", category="user")
    assert (await bench.outcome(after)).payload == b"{}"
    assert bench.backend.calls == ["pass a", "pass a", "step a 0.1"]


async def test_a_worker_lost_amid_a_huge_pass_ends_it_and_all_that_waits(bench: Bench) -> None:
    bench.backend.gate.clear()
    bench.backend.calls_take_s = 0.02
    hog, waiting = await bench.submit("a", 0, a_hog("a")), await bench.submit("a", 1, a_step("a"))
    await started(bench)
    bench.backend.gate.set()
    await started(bench, 3)
    bench.backend.fail_next = WorkerLost("the worker died")
    for request_id in (hog, waiting):
        assert await bench.outcome(request_id) == Outcome(error="the worker died", category="server")


async def test_stopping_amid_a_huge_pass_ends_its_promise(bench: Bench) -> None:
    bench.backend.gate.clear()
    hog = await bench.submit("a", 0, a_hog("a"))
    await started(bench)
    await bench.scheduler.fail_waiting(EngineFailure("shutting down"))
    assert await bench.outcome(hog) == Outcome(error="shutting down", category="server")


async def test_a_closed_model_is_freed_while_others_are_busy(bench: Bench) -> None:
    bench.backend.calls_take_s = 0.02
    hog = await bench.submit("a", 0, a_hog("a", 30))
    await started(bench)
    bench.scheduler.close_lane("b")
    assert (await bench.outcome(hog)).payload == b"done"
    assert bench.backend.calls.index("delete b") < 4


async def test_a_model_closed_amid_its_own_huge_pass_is_freed_after_it(bench: Bench) -> None:
    hog = await bench.submit("a", 0, a_hog("a", 5))
    await started(bench)
    bench.scheduler.close_lane("a")
    assert (await bench.outcome(hog)).payload == b"done"
    await started(bench, 6)
    assert bench.backend.calls == ["pass a"] * 5 + ["delete a"]


async def test_a_stalled_lane_loses_its_gap_also_while_others_are_busy(impatient: Bench) -> None:
    impatient.scheduler.open_lane("b")
    impatient.backend.calls_take_s = 0.01
    stalled = await impatient.submit("a", 3, a_step("a"))
    await impatient.submit("b", 0, a_hog("b", 60))
    assert (await impatient.outcome(stalled)).payload == b"{}"
    assert impatient.backend.calls[-1] != "pass b" or impatient.backend.calls.count("pass b") < 60


async def test_polls_are_told_what_an_operation_waits_for(bench: Bench) -> None:
    describe = bench.scheduler.describe
    bench.backend.gate.clear()
    await bench.submit("a", 0, a_hog("a", 3))
    await started(bench)
    await bench.submit("a", 1, a_step("a"))
    await bench.submit("b", 1, a_pass("b"))
    assert describe("a", 0) == QueueState("active", "it is running: part 1 of 3")
    assert describe("a", 1) == QueueState(
        "active", "1 earlier operations of this model with 300 tokens run first"
    )
    assert describe("b", 1) == QueueState(
        "paused_capacity", "it waits for seq_id 0 of this model, which has not arrived"
    )
    await bench.submit("b", 0, a_pass("b"))
    assert describe("b", 0) == QueueState(
        "paused_capacity", "other models have 200 tokens waiting and take turns with it"
    )
    assert describe("b", 7) is None
    assert describe("nobody", 0) is None
    bench.backend.gate.set()
    await bench.outcome("b:1")
    assert describe("b", 1) is None


async def test_the_room_of_an_operation_is_given_back_when_it_ends_well_or_not(bench: Bench) -> None:
    bound = Bound(10, 10_000)
    admission = Admission(Bounds(bound, bound, bound), SchedulerMetrics(CollectorRegistry()))
    works = [a_hog("a", 3), a_pass("a", "bad"), a_step("a"), Rejected(InvalidInput("NaN"))]
    tickets = [admission.admit("ann", "a", 100, incomplete=False) for _ in works]
    for seq_id, (work, ticket) in enumerate(zip(works, tickets, strict=True)):
        await bench.submit("a", seq_id, work, ticket)
    for seq_id in range(4):
        await bench.outcome(f"a:{seq_id}")
    await asyncio.sleep(0.01)
    assert [ticket.loads for ticket in tickets] == [[]] * 4
