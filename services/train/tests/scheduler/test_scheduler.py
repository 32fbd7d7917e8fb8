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
from tinsmith_common.futures import FutureStore, Outcome, PromiseKind
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores
from tinsmith_train.backends.base import TrainBackend, WorkerLost
from tinsmith_train.engine.types import (
    AdamParams,
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
)
from tinsmith_train.scheduler.lanes import Farewell
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.scheduler.operations import Operation, Pass, Rejected, Task
from tinsmith_train.scheduler.scheduler import Scheduler


class RecordingBackend:
    """Notes every call; `fail_next` is raised by the next pass; `gate` holds passes back while it is unset."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_next: Exception | None = None
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

    async def forward_backward(
        self, batch: Sequence[ForwardBackward]
    ) -> Sequence[ForwardBackwardResult | TinsmithError]:
        self.calls.append("pass " + "+".join(item.adapter_id for item in batch))
        await self.gate.wait()
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        return [
            InvalidInput("unknown loss")
            if item.loss == "bad"
            else ForwardBackwardResult((), {"loss:sum": 1.0})
            for item in batch
        ]

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
            tokens_per_cycle=1000,
            lane_gap_s=lane_gap_s,
        )

    async def submit(self, model: str, seq_id: int, work: Pass | Task | Rejected) -> str:
        request_id = f"{model}:{seq_id}"
        await self.futures.submit(request_id, PromiseKind.FORWARD_BACKWARD, "ann")
        self.scheduler.submit(Operation(request_id, model, seq_id, work))
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
    running.cancel()
    await stores.close()


def a_pass(model: str, loss: str = "cross_entropy") -> Pass:
    ids = np.zeros(4, np.int64)
    return Pass(ForwardBackward(model, (Datum(ids, ids),), loss), lambda _: b"done")


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
    running.cancel()


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
        tokens_per_cycle=1000,
        lane_gap_s=600,
    )
    stopped.open_lane("a")
    stopped.close_lane("a", Farewell("a:unload", b"bye"))
    await stopped.fail_waiting(EngineFailure("over"))
    assert (await bench.outcome("a:unload")).payload == b"bye"
