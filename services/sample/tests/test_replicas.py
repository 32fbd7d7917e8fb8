"""Several sample services on one store: who runs what, who takes over, how one leaves, whose turn it is.

With fake engines, one to each, because these are questions of timing. The end-to-end test has real ones.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tinsmith_common.wire import tinsmith_wire_pb2 as pb

Serve = Callable[..., AbstractAsyncContextManager[Any]]
TIMEOUT_S = 1.2


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.01)


@pytest.fixture
def new_engine(fake_engine: Any) -> Callable[[], Any]:
    return type(fake_engine)


@asynccontextmanager
async def two(serve: Serve, new_engine: Callable[[], Any]) -> AsyncGenerator[tuple[Any, Any, Any, Any]]:
    """Two replicas and their engines."""
    engines = new_engine(), new_engine()
    async with (
        serve(engines[0], sampling_port=1, replica_timeout_s=TIMEOUT_S) as a,
        serve(engines[1], sampling_port=2, replica_timeout_s=TIMEOUT_S) as b,
    ):
        yield a, b, *engines


def die(service: Any) -> None:
    """As after `kill -9`: no beats, no work, no goodbye."""
    runtime = service.app.state.runtime
    for task in runtime._tasks:
        task.cancel()
    runtime._tasks = []
    for item in service.app.state.sampling._running.values():
        item.task.cancel()


async def test_a_replica_that_starts_leaves_the_others_work_alone(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    async with two(serve, new_engine) as (a, _, engine_a, engine_b):
        sampler = await a.session()
        await a.sample(sampler)
        await until(lambda: engine_a.running == 1)
        async with serve(engine_b, sampling_port=3):
            await asyncio.sleep(0.2)
            assert (engine_a.running, len(engine_b.asked)) == (1, 0)


async def test_either_replica_answers_the_poll_of_a_sample(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    async with two(serve, new_engine) as (a, b, engine_a, engine_b):
        promise = (await a.sample(await a.session())).json()
        poll = asyncio.create_task(b.result(promise["request_id"]))
        await until(lambda: engine_a.running == 1)
        engine_a.gate.set()
        assert (await poll).content == (await a.result(promise["request_id"])).content
        assert engine_b.asked == []


async def test_a_repeated_submission_at_another_replica_runs_nothing(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    async with two(serve, new_engine) as (a, b, engine_a, engine_b):
        sampler = await a.session()
        answers = [await service.sample(sampler, 5) for service in (a, b)]
        assert answers[0].json() == answers[1].json()
        await until(lambda: engine_a.running == 1)
        assert engine_b.asked == []


async def test_the_samples_of_a_dead_replica_are_finished_by_the_other(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    async with two(serve, new_engine) as (a, b, engine_a, engine_b):
        sampler = await a.session()
        requests = [(await a.sample(sampler, seq_id)).json()["request_id"] for seq_id in range(10)]
        await until(lambda: engine_a.running == 10)
        die(a)
        engine_b.gate.set()
        async with asyncio.timeout(TIMEOUT_S * 5):
            results = [await b.result(request_id) for request_id in requests]
        assert all(len(pb.SampleResponse.FromString(item.content).sequences) == 1 for item in results)
        assert len(engine_b.asked) == 10


async def test_a_replica_that_was_only_slow_drops_what_was_taken_over(
    serve: Serve, new_engine: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(serve, new_engine) as (a, _, engine_a, engine_b):
        sampler = await a.session()
        promise = (await a.sample(sampler)).json()
        await until(lambda: engine_a.running == 1)
        leases, beats = a.app.state.stores.futures.leases, asyncio.Event()
        beat = leases.beat

        async def late(holder: str) -> Any:
            await beats.wait()
            return await beat(holder)

        monkeypatch.setattr(leases, "beat", late)
        await until(lambda: engine_b.running == 1)
        beats.set()
        await until(lambda: engine_a.running == 0)
        assert engine_b.running == 1
        engine_b.gate.set()
        assert (
            len(pb.SampleResponse.FromString((await a.result(promise["request_id"])).content).sequences) == 1
        )
        # It takes part again.
        engine_a.gate.set()
        again = (await a.sample(sampler, 1)).json()
        await a.result(again["request_id"])
        assert len(engine_a.asked) == 2


async def test_a_cancellation_at_one_replica_stops_the_work_at_the_other(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    async with two(serve, new_engine) as (a, b, engine_a, _):
        sampler = await a.session()
        requests = [(await a.sample(sampler, seq_id)).json()["request_id"] for seq_id in range(2)]
        await until(lambda: engine_a.running == 2)
        await b.cancel(requests[0])
        await until(lambda: engine_a.running == 1)
        assert (await a.result(requests[0])).json()["error"] == "cancelled by the client"
        engine_a.gate.set()
        assert "protobuf" in (await b.result(requests[1])).headers["content-type"]


async def test_a_draining_replica_finishes_what_runs_and_takes_nothing_new(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    async with two(serve, new_engine) as (a, b, engine_a, engine_b):
        await until(lambda: a.app.state.ready)
        sampler = await a.session()
        promise = (await a.sample(sampler)).json()
        await until(lambda: engine_a.running == 1)
        draining = asyncio.create_task(a.app.state.drain())
        await until(lambda: not a.app.state.ready)
        refused = await a.sample(sampler, 1)
        assert refused.status_code == 503
        assert refused.headers["x-envoy-immediate-health-check-fail"] == "true"
        assert (await a.http.get("/readyz")).status_code == 503
        assert (await b.sample(sampler, 1)).status_code == 200
        engine_a.gate.set()
        await asyncio.wait_for(draining, 10)
        assert "protobuf" in (await b.result(promise["request_id"])).headers["content-type"]
        assert len(engine_b.asked) == 1


async def test_what_is_unfinished_after_the_grace_period_is_handed_over_at_once(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    engine_a, engine_b = new_engine(), new_engine()
    async with AsyncExitStack() as held:
        a = await held.enter_async_context(serve(engine_a, sampling_port=1, drain_grace_s=0.2))
        b = await held.enter_async_context(serve(engine_b, sampling_port=2, replica_timeout_s=1.5))
        sampler = await a.session()
        promise = (await a.sample(sampler)).json()
        await until(lambda: engine_a.running == 1)
        poll = asyncio.create_task(a.result(promise["request_id"]))
        await a.app.state.drain()
        await until(lambda: engine_a.running == 0)
        engine_b.gate.set()
        assert "protobuf" in (await b.result(promise["request_id"])).headers["content-type"]
        poll.cancel()


async def test_what_waits_for_a_place_is_handed_back_when_draining_begins(
    serve: Serve, new_engine: Callable[[], Any]
) -> None:
    engine_a, engine_b = new_engine(), new_engine()
    async with (
        serve(engine_a, sampling_port=1, max_running_samples=2) as a,
        serve(engine_b, sampling_port=2, replica_timeout_s=1.5) as b,
    ):
        sampler = await a.session()
        requests = [(await a.sample(sampler, seq_id)).json()["request_id"] for seq_id in range(6)]
        await until(lambda: engine_a.running == 2)
        draining = asyncio.create_task(a.app.state.drain())
        await until(lambda: engine_b.running == 4)
        assert engine_a.running == 2
        engine_a.gate.set()
        engine_b.gate.set()
        await draining
        for request_id in requests:
            assert "protobuf" in (await b.result(request_id)).headers["content-type"]
        assert (len(engine_a.asked), len(engine_b.asked)) == (2, 4)


async def test_one_session_s_hundreds_do_not_delay_another_s_single_sample(
    serve: Serve, fake_engine: Any
) -> None:
    async with serve(fake_engine, max_running_samples=4, max_queued_samples=500) as service:
        crowd, single = await service.session(), await service.session()
        for seq_id in range(200):
            await service.sample(crowd, seq_id)
        await until(lambda: fake_engine.running == 4)
        promise = (
            await service.sample(single, prompt={"chunks": [{"type": "encoded_text", "tokens": [9]}]})
        ).json()
        await until(lambda: service.app.state.sampling._engines.waiting("tinsmith/tiny") == 197)
        fake_engine.gate.set()
        await service.result(promise["request_id"])
        turn = [spec.prompt for spec in fake_engine.asked].index((9,))
        assert turn <= 6  # four were running, and one of the crowd may have had its turn


async def test_waiting_bodies_are_bounded_in_bytes(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine, max_queued_mib=0.01) as service:
        sampler = await service.session()
        prompt = {"chunks": [{"type": "encoded_text", "tokens": [5] * 1500}]}
        answers = [await service.sample(sampler, seq_id, prompt=prompt) for seq_id in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        fake_engine.gate.set()
        await service.result(f"{sampler}:0")
        await until(lambda: fake_engine.running == 0)
        assert (await service.sample(sampler, 3, prompt=prompt)).status_code == 200


async def test_the_poll_of_a_sample_that_waits_for_a_place_says_so(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine, max_running_samples=1, long_poll_s=0.1) as service:
        await until(lambda: service.app.state.ready)
        sampler = await service.session()
        states: list[str] = []
        for seq_id in range(2):
            promise = (await service.sample(sampler, seq_id)).json()
            await until(lambda: fake_engine.running == 1)
            answer = await service.http.post("/api/v1/retrieve_future", json=promise)
            states.append(answer.json()["queue_state"])
        fake_engine.gate.set()
    assert states == ["active", "paused_capacity"]
