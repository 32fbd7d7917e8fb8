"""What the page shows of sampling, and the metrics behind it. The fake engine answers two tokens for each sample."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tinsmith_common.auth import ApiKeys, digest, new_key
from tinsmith_common.catalog import RunRecord
from tinsmith_common.watch import ReplicaReport
from tinsmith_sample.engines.base import ResidentAdapter, SampleResult

Serve = Callable[[Any], AbstractAsyncContextManager[Any]]
NOW = datetime.now(UTC)


async def metrics(service: Any) -> dict[str, float]:
    text = (await service.http.get("/metrics")).text
    return {
        f"{sample.name}{''.join(sorted(f' {k}={v}' for k, v in sample.labels.items() if k != 'model'))}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_prompt_tokens_are_counted_by_where_they_came_from(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.cached_tokens = 2
    async with serve(fake_engine) as service:
        sampler = await service.session()
        for seq_id in range(3):
            await service.result((await service.sample(sampler, seq_id)).json()["request_id"])
        found = await metrics(service)
    assert found["tinsmith_prompt_tokens_total source=computed"] == 3
    assert found["tinsmith_prompt_tokens_total source=cached"] == 6
    assert found["tinsmith_sample_tokens_total"] == 6


async def test_the_time_to_the_first_token_counts_from_the_arrival(
    serve: Serve, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine.gate.set()
    sample = fake_engine.sample

    async def sample_later(*args: Any) -> SampleResult:
        from dataclasses import replace

        return replace(await sample(*args), first_token_at=datetime.now(UTC).timestamp() + 40)

    monkeypatch.setattr(fake_engine, "sample", sample_later)
    async with serve(fake_engine) as service:
        sampler = await service.session()
        await service.result((await service.sample(sampler)).json()["request_id"])
        found = await metrics(service)
    assert found["tinsmith_first_token_seconds_count"] == 1
    assert 40 <= found["tinsmith_first_token_seconds_sum"] < 60


@pytest.mark.slow  # imports transformers
async def test_a_stream_counts_its_prompt_and_its_first_part(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    body = {"model": "tinsmith/tiny", "prompt": [5, 6, 7], "stream": True}
    async with serve(fake_engine) as service:
        (await service.http.post("/oai/api/v1/completions", json=body)).raise_for_status()
        found = await metrics(service)
    assert found["tinsmith_first_token_seconds_count"] == 1
    assert found["tinsmith_prompt_tokens_total source=computed"] == 3
    assert found["tinsmith_inference_tokens_total"] == 2


async def watched(service: Any, key: str = "tml-key") -> Any:
    await service.app.state.reporter.report()
    answer = await service.http.get("/api/v1/ui/sampling", headers={"X-API-Key": key})
    return answer.raise_for_status().json()


async def test_a_replica_tells_how_it_is(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        promise = (await service.sample(sampler)).json()
        (replica,) = (await watched(service))["replicas"]
        assert (replica["state"], replica["queue"]) == ("ready", 1)
        fake_engine.cached_tokens = 1
        fake_engine.gate.set()
        await service.result(promise["request_id"])
        (replica,) = (await watched(service))["replicas"]
    (engine,) = replica["engines"]
    assert (replica["queue"], engine["sampled_tokens"]) == (0, 2)
    assert (engine["prompt_tokens"], engine["cached_tokens"]) == (3, 1)


async def test_any_replica_tells_of_all_and_of_those_that_fell_silent(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        adapter = {
            "base_model": "m",
            "name": "v1",
            "weights": "r/w",
            "run_id": "r",
            "state": "resident",
            "users": 0,
        }
        figures = {"state": "ready", "queue": 4, "engines": [], "adapters": [adapter]}
        silent = ReplicaReport("other", "host", NOW, datetime.now(UTC) - timedelta(minutes=1), figures)
        await service.app.state.stores.replicas.put(silent, NOW - timedelta(days=1))
        replicas = (await watched(service))["replicas"]
    gone = next(item for item in replicas if item["replica_id"] == "other")
    assert (gone["state"], gone["adapters"], gone["other_adapters"]) == ("silent", [], 0)
    assert len(replicas) == 2


async def test_a_replica_that_stops_takes_its_report_back(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        (replica,) = (await watched(service))["replicas"]
        # It is called by its place: after a crash the next one there takes the report over.
        assert re.fullmatch(r".+/[\d.]+:\d+", replica["replica_id"])
        await service.app.state.reporter.stop()
        assert await service.app.state.stores.replicas.all() == ()


async def test_adapters_are_named_to_their_owner_and_counted_for_others(
    serve: Serve, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def residents() -> Sequence[ResidentAdapter]:
        return [
            ResidentAdapter("s:train:0/sampler_weights/one@12.3", "v1", True, 2),
            ResidentAdapter("t:train:0/snapshots/0@12.3", "v2", False, 1),
        ]

    monkeypatch.setattr(fake_engine, "residents", residents)
    async with serve(fake_engine) as service:
        stores = service.app.state.stores
        for session, owner in (("s", "ann"), ("t", "ben")):
            await stores.catalog.runs.create(
                RunRecord(f"{session}:train:0", session, owner, "base", 8, 32.0, True, True, True, NOW, NOW)
            )
        key = new_key()
        await ApiKeys(stores.database).add(digest(key), "ann", "", "")
        (of_ann,) = (await watched(service, key))["replicas"]
        (of_all,) = (await watched(service))["replicas"]
    (adapter,) = of_ann["adapters"]
    assert adapter == {
        "base_model": "tinsmith/tiny",
        "name": "v1",
        "weights": "s:train:0/sampler_weights/one",
        "run_id": "s:train:0",
        "state": "resident",
        "users": 2,
    }
    assert of_ann["other_adapters"] == 1
    assert [item["state"] for item in of_all["adapters"]] == ["resident", "loading"]
    assert of_all["other_adapters"] == 0
