"""Which sessions count as failed, by what, and until when."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tinsmith_common.catalog import RunRecord, SamplingSessionRecord
from tinsmith_common.errors import Category, EngineFailure
from tinsmith_common.futures import PromiseKind
from tinsmith_common.stores import Stores
from tinsmith_common.wire.search import SearchSessionsRequest
from tinsmith_common.wire.sessions import CreateSessionRequest, FinishSessionRequest
from tinsmith_train.config import TrainingConfig
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.services.container import Services

NOW = datetime.now(UTC)
SILENT_FOR = timedelta(0)


@pytest.fixture
def services(tmp_path: Path, stores: Stores) -> Services:
    return Services.build(
        TrainingConfig(metadata_dir=tmp_path), stores, SchedulerMetrics(CollectorRegistry())
    )


async def new_session(services: Services) -> str:
    return await services.sessions.create("ann", CreateSessionRequest())


async def status(services: Services, session_id: str) -> dict[str, Any] | None:
    """As a search tells it."""
    query = SearchSessionsRequest(session_id=session_id)
    (found,) = (await services.search.search("ann", query)).sessions
    return None if found.status is None else found.status.model_dump(exclude_none=True)


async def fail(
    stores: Stores, request_id: str, kind: PromiseKind = PromiseKind.OPTIM_STEP, category: Category = "user"
) -> None:
    await stores.futures.submit(request_id, kind, "ann")
    await stores.futures.fail(request_id, "broken", category)


async def succeed(stores: Stores, request_id: str, kind: PromiseKind = PromiseKind.SAMPLE) -> None:
    await stores.futures.submit(request_id, kind, "ann")
    await stores.futures.resolve(request_id, b"{}")


async def add_run(stores: Stores, session_id: str, number: int = 0) -> str:
    run_id = f"{session_id}:train:{number}"
    await stores.catalog.runs.create(
        RunRecord(run_id, session_id, "ann", "base", 8, 32.0, True, True, True, NOW, NOW)
    )
    return run_id


async def add_sampler(stores: Stores, session_id: str) -> str:
    sampler_id = f"{session_id}:sample:0"
    await stores.catalog.sampling_sessions.create(
        SamplingSessionRecord(sampler_id, session_id, "ann", "base", NOW)
    )
    return sampler_id


async def test_a_session_that_falls_silent_after_an_error_failed_by_that_request(
    stores: Stores, services: Services
) -> None:
    session_id = await new_session(services)
    await succeed(stores, f"{session_id}:train:0:1", PromiseKind.OPTIM_STEP)
    await fail(stores, f"{session_id}:train:0:2")
    assert await status(services, session_id) == {"type": "active"}
    await services.sessions.close_silent(SILENT_FOR)
    assert await status(services, session_id) == {
        "type": "failed",
        "category": "user",
        "message": "broken",
        "reason": {
            "type": "request",
            "request_id": f"{session_id}:train:0:2",
            "request_type": "OptimStep",
        },
    }


async def test_an_error_after_which_the_client_went_on_does_not_fail_its_session(
    stores: Stores, services: Services
) -> None:
    session_id = await new_session(services)
    await fail(stores, f"{session_id}:train:0:1")
    await succeed(stores, f"{session_id}:train:0:2", PromiseKind.OPTIM_STEP)
    await services.sessions.close_silent(SILENT_FOR)
    assert await status(services, session_id) is None


async def test_what_the_client_cancelled_does_not_fail_its_session(
    stores: Stores, services: Services
) -> None:
    session_id = await new_session(services)
    await stores.futures.submit(f"{session_id}:sample:0:0", PromiseKind.SAMPLE, "ann")
    await stores.futures.cancel(f"{session_id}:sample:0:0", "ann")
    await services.sessions.close_silent(SILENT_FOR)
    assert await status(services, session_id) is None


async def test_nobody_fails_the_session_of_somebody_else(stores: Stores, services: Services) -> None:
    session_id = await new_session(services)
    await stores.futures.submit(f"{session_id}:sample:0:0", PromiseKind.SAMPLE, "bob")
    await stores.futures.fail(f"{session_id}:sample:0:0", "not yours", "user")
    await services.sessions.close_silent(SILENT_FOR)
    assert await status(services, session_id) is None


async def test_a_sampler_that_never_worked_fails_as_a_whole(stores: Stores, services: Services) -> None:
    session_id = await new_session(services)
    sampler_id = await add_sampler(stores, session_id)
    await fail(stores, f"{sampler_id}:0", PromiseKind.SAMPLE, "server")
    await services.sessions.close_silent(SILENT_FOR)
    failed = await status(services, session_id)
    assert failed is not None
    assert failed["category"] == "internal"
    assert failed["reason"] == {"type": "sampling_session", "sampling_session_id": sampler_id}


async def test_a_sample_that_failed_after_others_worked_fails_as_a_request(
    stores: Stores, services: Services
) -> None:
    session_id = await new_session(services)
    sampler_id = await add_sampler(stores, session_id)
    await succeed(stores, f"{sampler_id}:0")
    await fail(stores, f"{sampler_id}:1", PromiseKind.SAMPLE)
    await services.sessions.close_silent(SILENT_FOR)
    failed = await status(services, session_id)
    assert failed is not None
    assert failed["reason"] == {
        "type": "request",
        "request_id": f"{sampler_id}:1",
        "request_type": "Sample",
    }


async def test_a_model_that_could_not_be_made_fails_as_a_training_run(
    stores: Stores, services: Services
) -> None:
    session_id = await new_session(services)
    run_id = await add_run(stores, session_id)
    await fail(stores, f"{run_id}:0", PromiseKind.CREATE_MODEL, "server")
    await services.sessions.close_silent(SILENT_FOR)
    failed = await status(services, session_id)
    assert failed is not None
    assert failed["reason"] == {"type": "training_run", "training_run_id": run_id}


async def test_a_lost_model_is_corrupted_and_fails_its_open_session(
    stores: Stores, services: Services
) -> None:
    session_id = await new_session(services)
    run_id = await add_run(stores, session_id)
    await services.failures.models_lost([run_id, "unknown"], EngineFailure("the worker died"))
    assert (await services.runs.get_run("ann", run_id, "owned")).corrupted
    failed = await status(services, session_id)
    assert failed == {
        "type": "failed",
        "category": "internal",
        "message": "the worker died",
        "reason": {"type": "training_run", "training_run_id": run_id},
    }
    query = SearchSessionsRequest.model_validate({"statuses": [{"type": "failed"}]})
    assert [item.session_id for item in (await services.search.search("ann", query)).sessions] == [session_id]
    active = SearchSessionsRequest.model_validate({"statuses": [{"type": "active"}]})
    assert (await services.search.search("ann", active)).sessions == []


async def test_a_restart_loses_the_models_of_open_sessions_only(stores: Stores, services: Services) -> None:
    open_id, copies_id, closed_id = [await new_session(services) for _ in range(3)]
    lost, copy, closed = [await add_run(stores, item) for item in (open_id, copies_id, closed_id)]
    await stores.catalog.runs.update(copy, copied_from="tinker://x")
    await services.sessions.finish(
        "ann", closed_id, FinishSessionRequest.model_validate({"reason": {"type": "success"}})
    )
    await services.failures.service_restarted()
    corrupted = [await stores.catalog.runs.get(run_id) for run_id in (lost, copy, closed)]
    assert [run is not None and run.corrupted for run in corrupted] == [True, False, False]
    statuses = [await status(services, item) for item in (open_id, copies_id, closed_id)]
    assert [item and item["type"] for item in statuses] == ["failed", "active", "client_finished"]


async def test_the_client_s_own_word_comes_first(stores: Stores, services: Services) -> None:
    session_id = await new_session(services)
    run_id = await add_run(stores, session_id)
    await services.failures.models_lost([run_id], EngineFailure("the worker died"))
    finish = {"reason": {"type": "errored"}, "detail": "gave up"}
    await services.sessions.finish("ann", session_id, FinishSessionRequest.model_validate(finish))
    assert await status(services, session_id) == {"type": "client_finished", **finish}
