"""Which weights an inflight sampling session serves, on real stores and with a fake engine.

The end-to-end tests save them with a trainer and sample them with SGLang.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import pytest

from tinsmith_common.catalog import InflightRecord, SamplingSessionRecord
from tinsmith_common.errors import EngineFailure
from tinsmith_sample.engines.base import Adapter, SampleResult, SampleSpec

Serve = Callable[[Any], AbstractAsyncContextManager[Any]]
MODEL = "tinsmith/tiny"
RUN = "s:train:0"


async def _save(service: Any, version: int) -> None:
    """What the train service does at an inflight save, besides opening a session."""
    stores, key = service.app.state.stores, f"{RUN}/inflight/{version}"
    with stores.checkpoints.write(key) as folder:
        (folder / "adapter_config.json").write_text("{}")
    await stores.catalog.inflight.put(InflightRecord(RUN, key, datetime.now(UTC)))


async def _session(service: Any, number: int) -> str:
    owner = (await service.app.state.stores.authenticator.authenticate("key")).owner
    record = SamplingSessionRecord(
        f"s:sample:{number}", "s", owner, MODEL, datetime.now(UTC), inflight_run=RUN
    )
    await service.app.state.stores.catalog.sampling_sessions.create(record)
    return record.id


async def _sample(service: Any, sampler: str, seq_id: int = 0) -> Any:
    promise = (await service.sample(sampler, seq_id)).json()
    return await service.result(promise["request_id"])


def _versions(engine: Any) -> list[str]:
    return [adapter.folder.name for adapter in engine.adapters]


async def test_every_session_of_the_model_serves_what_was_saved_last(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        await _save(service, 3)
        first = await _session(service, 0)
        await _sample(service, first)
        await _save(service, 7)
        second = await _session(service, 1)
        await _sample(service, second)
        await _sample(service, first, 1)
    assert _versions(fake_engine) == ["3", "7", "7"]


async def test_another_process_on_the_same_store_serves_it_too(serve: Serve, fake_engine: Any) -> None:
    """Neither process is told: both look when a request begins."""
    fake_engine.gate.set()
    async with serve(fake_engine) as one, serve(fake_engine) as other:
        await _save(one, 1)
        sampler = await _session(one, 0)
        await _sample(other, sampler)
        await _save(one, 2)
        await _sample(other, sampler, 1)
    assert _versions(fake_engine) == ["1", "2"]


async def test_sessions_share_the_weights_and_not_the_cache(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        await _save(service, 1)
        samplers = [await _session(service, number) for number in range(2)]
        for sampler in samplers:
            await _sample(service, sampler)
    assert len({adapter.key for adapter in fake_engine.adapters}) == 1
    assert [adapter.cache_namespace for adapter in fake_engine.adapters] == samplers


async def test_weights_that_go_while_they_are_loaded_are_replaced_by_the_newest(
    serve: Serve, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        await _save(service, 1)
        sampler = await _session(service, 0)
        answer = fake_engine.sample

        async def sample(spec: SampleSpec, adapter: Adapter) -> SampleResult:
            if not fake_engine.asked:
                fake_engine.asked.append(spec)
                await _save(service, 2)
                shutil.rmtree(adapter.folder)
                raise EngineFailure("no such file")
            return await answer(spec, adapter)

        monkeypatch.setattr(fake_engine, "sample", sample)
        result = await _sample(service, sampler)
    assert "protobuf" in result.headers["content-type"]
    assert _versions(fake_engine) == ["2"]


async def test_a_failure_that_newer_weights_do_not_explain_is_told_at_once(
    serve: Serve, fake_engine: Any
) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [EngineFailure("out of memory")]
    async with serve(fake_engine) as service:
        await _save(service, 1)
        result = await _sample(service, await _session(service, 0))
    assert result.json() == {"error": "out of memory", "category": "server"}
    assert len(fake_engine.asked) == 1


async def test_a_session_whose_model_has_ended_says_so(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        result = await _sample(service, await _session(service, 0))
    assert "session they were made in has ended" in result.json()["error"]
    assert result.json()["category"] == "user"
