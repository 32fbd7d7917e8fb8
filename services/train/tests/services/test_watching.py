"""What the page shows of training, and to whom."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tinsmith_common.auth import Principal
from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.errors import NotFound
from tinsmith_common.futures import PromiseKind
from tinsmith_common.stores import Stores
from tinsmith_common.watch import Step
from tinsmith_train.services.registry import ModelRegistry
from tinsmith_train.services.watching import WatchService

ANN, BEN, OPERATOR = Principal("ann", 1), Principal("ben", 2), Principal("local")
RUN = "s:train:0"


@pytest.fixture
def watching(stores: Stores, saved: CheckpointRecord) -> WatchService:
    return WatchService(ModelRegistry(), stores)


async def seen(watching: WatchService, caller: Principal) -> Any:
    return await watching.training(caller, ready=True, trained_tokens=5)


async def test_an_owner_sees_its_own_and_an_operator_everybody_s(
    stores: Stores, watching: WatchService
) -> None:
    run = await stores.catalog.runs.get(RUN)
    assert run is not None
    await stores.catalog.runs.create(replace(run, id="t:train:0", session_id="t", owner="ben"))
    for owner in ("ann", "ben"):
        await stores.futures.submit(f"{owner}:1", PromiseKind.OPTIM_STEP, owner)
        await stores.futures.fail(f"{owner}:1", f"fault of {owner}", "user")
    await stores.history.add_steps([Step(RUN, 1, datetime.now(UTC), loss_sum=2.5)])
    ann, ben, operator = [await seen(watching, caller) for caller in (ANN, BEN, OPERATOR)]
    assert [run.run_id for run in ann.runs] == [RUN]
    assert [run.run_id for run in ben.runs] == ["t:train:0"]
    assert {run.run_id for run in operator.runs} == {RUN, "t:train:0"}
    assert [item.error for item in ann.failures] == ["fault of ann"]
    assert [item.error for item in operator.failures] == ["fault of ben", "fault of ann"]
    assert (ann.operator, ann.trained_tokens, operator.operator, operator.trained_tokens) == (
        False,
        None,
        True,
        5,
    )
    assert ann.runs[0].last_step.loss_sum == 2.5
    assert ben.runs[0].last_step is None


async def test_a_run_s_curves_are_its_owner_s_and_the_operator_s(
    stores: Stores, watching: WatchService
) -> None:
    await stores.history.add_steps([Step(RUN, n, datetime.now(UTC), loss_sum=float(n)) for n in (1, 2, 3)])
    for caller in (ANN, OPERATOR):
        assert [step.loss_sum for step in (await watching.history(caller, RUN, 1)).steps] == [2.0, 3.0]
    for caller, run_id in ((BEN, RUN), (ANN, "none")):
        with pytest.raises(NotFound):
            await watching.history(caller, run_id, 0)


async def test_a_lost_run_is_told_from_one_that_ended(stores: Stores, watching: WatchService) -> None:
    assert (await seen(watching, ANN)).runs[0].state == "ended"
    await stores.catalog.runs.update(RUN, corrupted=True)
    assert (await seen(watching, ANN)).runs[0].state == "lost"
