"""What samples are counted as, and when. The fake engine answers every completion with two tokens."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tinsmith_common.catalog import UsageKind
from tinsmith_common.errors import EngineFailure

Serve = Callable[[Any], AbstractAsyncContextManager[Any]]


async def counted(service: Any) -> dict[UsageKind, int]:
    """Of the caller's usage around now; a test has one session."""
    now, day = datetime.now(UTC), timedelta(days=1)
    hours = await service.app.state.stores.catalog.usage.hours("local", now - day, now + day)
    assert {item.base_model for item in hours} <= {"tinsmith/tiny"}
    return {kind: sum(item.quantity for item in hours if item.kind == kind) for kind in UsageKind}


async def test_a_prompt_counts_once_and_every_completion_s_tokens_do(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.cached_tokens = 1
    async with serve(fake_engine) as service:
        sampler = await service.session()
        promise = (await service.sample(sampler, num_samples=4)).json()
        await service.result(promise["request_id"])
        assert await counted(service) == {
            UsageKind.PREFILL: 2,
            UsageKind.PREFILL_CACHED: 1,
            UsageKind.SAMPLED: 8,
            UsageKind.TRAINING: 0,
            UsageKind.CHECKPOINT: 0,
        }


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("stream", [False, True])
async def test_inference_counts_under_its_protocol(serve: Serve, fake_engine: Any, stream: bool) -> None:
    fake_engine.gate.set()
    body = {"model": "tinsmith/tiny", "prompt": [5, 6, 7], "stream": stream}
    async with serve(fake_engine) as service:
        for _ in range(2):
            (await service.http.post("/oai/api/v1/completions", json=body)).raise_for_status()
        now, day = datetime.now(UTC), timedelta(days=1)
        hours = await service.app.state.stores.catalog.usage.hours("local", now - day, now + day)
        assert {item.session_id for item in hours} == {"openai"}
        used = await counted(service)
    assert (used[UsageKind.PREFILL], used[UsageKind.SAMPLED]) == (6, 4)


@pytest.mark.slow  # imports transformers
async def test_inference_that_failed_counts_only_what_a_stream_had_told(
    serve: Serve, fake_engine: Any
) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [EngineFailure("no"), EngineFailure("no")]
    body = {"model": "tinsmith/tiny", "prompt": [5, 6, 7]}
    async with serve(fake_engine) as service:
        await service.http.post("/oai/api/v1/completions", json=body)
        assert set((await counted(service)).values()) == {0}
        await service.http.post("/oai/api/v1/completions", json=body | {"stream": True})
        used = await counted(service)
    assert (used[UsageKind.PREFILL], used[UsageKind.SAMPLED]) == (3, 1)


async def test_a_repeated_request_counts_once(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        sampler = await service.session()
        for _ in range(3):
            promise = (await service.sample(sampler)).json()
            await service.result(promise["request_id"])
        assert (await counted(service))[UsageKind.SAMPLED] == 2


async def test_what_failed_or_was_given_up_counts_nothing(serve: Serve, fake_engine: Any) -> None:
    fake_engine.failures.append(EngineFailure("no"))
    async with serve(fake_engine) as service:
        sampler = await service.session()
        given_up = (await service.sample(sampler, 0)).json()["request_id"]
        await service.cancel(given_up)
        fake_engine.gate.set()
        failed = (await service.sample(sampler, 1)).json()["request_id"]
        assert (await service.result(failed)).json()["error"] == "no"
        assert set((await counted(service)).values()) == {0}


async def test_work_that_a_restart_interrupted_counts_once(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        promise = (await service.sample(sampler)).json()
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        await service.result(promise["request_id"])
        assert (await counted(service))[UsageKind.SAMPLED] == 2
