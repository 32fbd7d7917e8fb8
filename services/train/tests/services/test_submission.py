"""Who may submit what, on real stores."""

import pytest

from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.errors import PromiseLost
from tinsmith_common.futures import PromiseKind
from tinsmith_common.stores import Stores
from tinsmith_train.scheduler.operations import Pass
from tinsmith_train.services.registry import ModelRegistry
from tinsmith_train.services.submission import Submissions


def never() -> Pass:
    raise AssertionError("nothing of a model that is not loaded is built")


async def test_nobody_can_use_up_the_numbers_of_anothers_model(
    stores: Stores, saved: CheckpointRecord
) -> None:
    submissions = Submissions(ModelRegistry(), stores.futures, stores.catalog)

    async def submit(owner: str) -> str:
        return await submissions.submit(owner, saved.run_id, 1, PromiseKind.OPTIM_STEP, never)

    bobs = await submit("bob")
    outcome = await stores.futures.wait(bobs, "bob", 0)
    assert outcome is not None
    assert "is not loaded" in (outcome.error or "")
    with pytest.raises(PromiseLost):
        await stores.futures.wait(f"{saved.run_id}:1", "bob", 0)
    assert await submit("ann") == f"{saved.run_id}:1"
