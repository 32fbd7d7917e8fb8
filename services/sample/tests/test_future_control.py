"""Cancelling samples, polling for many of them at once, and joining a session, over HTTP.

With a fake engine; `test_service_with_engine.py` and the end-to-end tests have the real one.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

Serve = Callable[[Any], AbstractAsyncContextManager[Any]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.01)


async def test_a_cancelled_sample_leaves_the_engine_and_its_promise_fails(
    serve: Serve, fake_engine: Any
) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        promises = [(await service.sample(sampler, seq_id)).json() for seq_id in range(3)]
        await until(lambda: fake_engine.running == 3)
        await service.cancel(promises[1]["request_id"])
        await until(lambda: fake_engine.running == 2)
        failure = (await service.result(promises[1]["request_id"])).json()
        fake_engine.gate.set()
        others = [await service.result(promises[index]["request_id"]) for index in (0, 2)]
        text = (await service.http.get("/metrics")).text
    assert failure == {"error": "cancelled by the client", "category": "user"}
    assert all("protobuf" in answer.headers["content-type"] for answer in others)
    assert "tinsmith_sample_cancelled_total 1.0" in text


async def test_cancelled_work_makes_room_in_a_full_queue(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        for seq_id in range(50):
            await service.sample(sampler, seq_id)
        assert (await service.sample(sampler, 50)).status_code == 429
        await service.cancel(f"{sampler}:7")
        assert (await service.sample(sampler, 50)).status_code == 200
        fake_engine.gate.set()


async def test_cancelled_work_is_not_taken_up_by_the_next_process(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        await service.sample(sampler)
        await service.cancel(f"{sampler}:0")
    asked = len(fake_engine.asked)
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        assert (await service.result(f"{sampler}:0")).json()["error"] == "cancelled by the client"
    assert len(fake_engine.asked) == asked


async def test_unknown_and_finished_requests_can_be_cancelled_without_effect(
    serve: Serve, fake_engine: Any
) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        sampler = await service.session()
        await service.sample(sampler)
        before = await service.result(f"{sampler}:0")
        await service.cancel(f"{sampler}:0")
        await service.cancel("nobody:sample:0:1")
        assert (await service.result(f"{sampler}:0")).content == before.content


async def test_one_poll_tells_the_endings_of_all_samples_of_a_client(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        for seq_id in (0, 1, 10**9):
            await service.sample(sampler, seq_id)
        poll = asyncio.create_task(service.ended(sampler))
        await until(lambda: fake_engine.running == 3)
        fake_engine.gate.set()
        ended, cursor = list[str](), 0
        first = await poll
        while True:
            ended += [item["request_id"] for item in first["completions"]]
            cursor = first["cursor"]
            if len(ended) == 2:
                break
            first = await service.ended(sampler, cursor)
        (of_the_clone,) = (await service.ended(sampler, clone=1))["completions"]
        result = await service.result(of_the_clone["request_id"])
    assert sorted(ended) == [f"{sampler}:0", f"{sampler}:1"]
    assert of_the_clone["request_id"] == f"{sampler}:{10**9}"
    assert of_the_clone["response_payload_uncompressed_size"] == len(result.content)


async def test_endings_survive_a_restart_and_the_cursor_goes_on(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        sampler = await service.session()
        await service.sample(sampler, 0)
        first = await service.ended(sampler)
    async with serve(fake_engine) as service:
        again = await service.ended(sampler)
        await service.sample(sampler, 1)
        later = await service.ended(sampler, first["cursor"])
    assert again == first
    assert [item["request_id"] for item in later["completions"]] == [f"{sampler}:1"]


async def test_an_acknowledgement_alone_is_answered_at_once(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        sampler = await service.session()
        await service.sample(sampler)
        first = await service.ended(sampler)
        done = {"timeout": 0, "retrieved_request_ids": [f"{sampler}:0"]}
        acknowledged = await service.ended(sampler, first["cursor"], **done)
        lost = await service.result(f"{sampler}:0")
    assert acknowledged == {"completions": [], "cursor": first["cursor"]}
    assert lost.status_code == 410


async def test_a_failed_sample_is_told_as_failed(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [ZeroDivisionError("surprise")]
    async with serve(fake_engine) as service:
        sampler = await service.session()
        await service.sample(sampler)
        answer = await service.ended(sampler)
    assert answer["completions"] == [{"state": "failed", "request_id": f"{sampler}:0"}]


async def test_clients_that_join_a_session_get_distinct_numbers(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        body = {"sampling_session_id": await service.session(), "type": "join_sampling_session"}
        joined = [service.http.post("/api/v1/join_sampling_session", json=body) for _ in range(4)]
        numbers = [answer.json()["client_counter"] for answer in await asyncio.gather(*joined)]
    assert sorted(numbers) == [1, 2, 3, 4]


async def test_an_unknown_session_cannot_be_joined(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        body = {"sampling_session_id": "nobody:sample:0"}
        assert (await service.http.post("/api/v1/join_sampling_session", json=body)).status_code == 404


@pytest.mark.parametrize("target", [{}, {"type": "training"}, {"type": "sampling_session"}])
async def test_a_poll_without_a_session_is_refused(
    serve: Serve, fake_engine: Any, target: dict[str, str]
) -> None:
    async with serve(fake_engine) as service:
        answer = await service.http.post("/api/v1/retrieve_futures", json={"target": target})
    assert answer.status_code == 422
