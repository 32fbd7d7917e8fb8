"""Who may submit what; and every promise that is recorded ends, whatever was wrong with its submission."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tinsmith_common.catalog import CheckpointRecord, RunRecord, SessionRecord
from tinsmith_common.errors import InvalidInput, Overloaded, PromiseLost
from tinsmith_common.futures import PromiseKind
from tinsmith_common.stores import Stores
from tinsmith_common.wire.training import CreateModelRequest
from tinsmith_train.engine.types import ModelInfo
from tinsmith_train.scheduler.admission import Admission, Bound, Bounds
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.scheduler.operations import Pass, Task
from tinsmith_train.scheduler.scheduler import Pace, Scheduler
from tinsmith_train.services.audit import AuditLog
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.models import ModelService
from tinsmith_train.services.registry import BaseModel, ModelRegistry
from tinsmith_train.services.submission import Submissions

NOW = datetime.now(UTC)
NO_BACKEND: Any = None  # what is refused never reaches one


def registry_of(stores: Stores) -> ModelRegistry:
    scheduler = Scheduler(
        NO_BACKEND, stores.futures, SchedulerMetrics(CollectorRegistry()), Pace(1000, 1000, 600)
    )
    return ModelRegistry({"base": BaseModel("base", "base", ModelInfo("A", 10, 10, 1), scheduler)})


def admission(operations: int = 10) -> Admission:
    bound = Bound(operations, 1000)
    return Admission(Bounds(bound, bound, bound), SchedulerMetrics(CollectorRegistry()))


@pytest.mark.parametrize(("error", "category"), [(InvalidInput("bad"), "user"), (ValueError("oh"), "server")])
async def test_a_body_that_cannot_be_read_ends_its_promise_in_its_turn(
    stores: Stores, error: Exception, category: str
) -> None:
    registry = registry_of(stores)
    registry.add(RunRecord("s:train:0", "s", "ann", "base", 8, 32.0, True, True, True, NOW, NOW))
    scheduler = registry.bases["base"].scheduler
    scheduler.open_lane("s:train:0")
    running = asyncio.create_task(scheduler.run())

    def build() -> Any:
        raise error

    submissions = Submissions(registry, stores.futures, stores.catalog, admission())
    request_id = await submissions.submit("ann", "s:train:0", 0, PromiseKind.OPTIM_STEP, build)
    outcome = await stores.futures.wait(request_id, "ann", 10)
    running.cancel()
    assert outcome is not None
    assert outcome.category == category


async def test_a_model_whose_record_cannot_be_written_ends_its_promise(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stores.catalog.sessions.create(SessionRecord("s", "ann", NOW, NOW))

    async def full(_record: RunRecord) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(stores.catalog.runs, "create", full)
    checkpoints = CheckpointService(
        stores.catalog, stores.checkpoints, stores.authenticator, AuditLog(stores.catalog)
    )
    models = ModelService(registry_of(stores), stores.futures, stores.catalog, checkpoints, 64)
    body = CreateModelRequest(session_id="s", model_seq_id=0, base_model="base")
    outcome = await stores.futures.wait(await models.create("ann", body), "ann", 10)
    assert outcome is not None
    assert outcome.category == "server"


def never() -> Pass:
    raise AssertionError("nothing of a model that is not loaded is built")


async def test_nobody_can_use_up_the_numbers_of_anothers_model(
    stores: Stores, saved: CheckpointRecord
) -> None:
    submissions = Submissions(ModelRegistry(), stores.futures, stores.catalog, admission())

    async def submit(owner: str) -> str:
        return await submissions.submit(owner, saved.run_id, 1, PromiseKind.OPTIM_STEP, never)

    bobs = await submit("bob")
    outcome = await stores.futures.wait(bobs, "bob", 0)
    assert outcome is not None
    assert "is not loaded" in (outcome.error or "")
    with pytest.raises(PromiseLost):
        await stores.futures.wait(f"{saved.run_id}:1", "bob", 0)
    assert await submit("ann") == f"{saved.run_id}:1"


async def test_over_the_bound_nothing_is_recorded_and_what_is_known_is_answered_again(stores: Stores) -> None:
    """A 429 must leave no promise behind: the client sends the same `seq_id` again, and it has to run then."""
    registry = registry_of(stores)
    registry.add(RunRecord("s:train:0", "s", "ann", "base", 8, 32.0, True, True, True, NOW, NOW))
    registry.bases["base"].scheduler.open_lane("s:train:0")
    submissions = Submissions(registry, stores.futures, stores.catalog, admission(2))

    async def submit(seq_id: int) -> str:
        kind = PromiseKind.OPTIM_STEP
        return await submissions.submit("ann", "s:train:0", seq_id, kind, lambda: Task(NO_BACKEND))

    for seq_id in (0, 1):
        await submit(seq_id)
    with pytest.raises(Overloaded, match="2 operations"):
        await submit(2)
    assert len(await stores.futures.pending()) == 2
    assert await submit(1) == "s:train:0:1"
    await registry.bases["base"].scheduler.fail_waiting(InvalidInput("over"))
    assert await submit(2) == "s:train:0:2"
