"""Publishing, access tokens and copies, between two accounts."""

from typing import Any, cast

import pytest

from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.errors import Conflict, InvalidInput, NotFound
from tinsmith_common.futures import Outcome
from tinsmith_common.stores import Stores
from tinsmith_common.wire.training import CreateModelRequest
from tinsmith_common.wire.weights import CopyWeightsRequest
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.copies import CopyService
from tinsmith_train.services.models import ModelService
from tinsmith_train.services.registry import BaseModel, ModelRegistry
from tinsmith_train.services.runs import RunService


@pytest.fixture
def copies(stores: Stores, checkpoints: CheckpointService) -> CopyService:
    return CopyService(stores.catalog, checkpoints)


@pytest.fixture
def runs(stores: Stores, checkpoints: CheckpointService) -> RunService:
    return RunService(stores.catalog, checkpoints)


async def test_a_published_checkpoint_is_loadable_by_others_until_withdrawn(
    saved: CheckpointRecord, checkpoints: CheckpointService
) -> None:
    with pytest.raises(NotFound):
        await checkpoints.loadable("bob", saved.path)
    await checkpoints.set_public(saved, True)
    assert (await checkpoints.loadable("bob", saved.path)).owner == "ann"
    await checkpoints.set_public(saved, False)
    with pytest.raises(NotFound):
        await checkpoints.loadable("bob", saved.path)


async def test_publishing_twice_and_withdrawing_twice_are_conflicts(
    saved: CheckpointRecord, checkpoints: CheckpointService
) -> None:
    with pytest.raises(Conflict, match="not public"):
        await checkpoints.set_public(saved, False)
    await checkpoints.set_public(saved, True)
    with pytest.raises(Conflict, match="already public"):
        await checkpoints.set_public(saved, True)


async def test_a_credential_of_the_owner_opens_a_private_checkpoint(
    saved: CheckpointRecord, checkpoints: CheckpointService
) -> None:
    assert await checkpoints.loadable("bob", saved.path, "tml-anns-key") == saved
    with pytest.raises(NotFound):
        await checkpoints.loadable("bob", saved.path, "tml-guess")


async def test_others_see_a_run_and_its_checkpoints_only_while_one_is_public(
    saved: CheckpointRecord, checkpoints: CheckpointService, runs: RunService
) -> None:
    async def seen_by_bob() -> int:
        return (await runs.list_runs("bob", 0, 10, "accessible", None)).cursor.total_count

    assert await seen_by_bob() == 0
    with pytest.raises(NotFound):
        await runs.checkpoints_of_run("bob", saved.run_id)
    await checkpoints.set_public(saved, True)
    assert await seen_by_bob() == 1
    assert (await runs.list_runs("bob", 0, 10, "owned", None)).cursor.total_count == 0
    assert len((await runs.checkpoints_of_run("bob", saved.run_id)).checkpoints) == 1
    assert (await runs.get_run("bob", saved.run_id, "accessible")).model_owner == "ann"
    with pytest.raises(NotFound):
        await runs.get_run("bob", saved.run_id, "owned")


@pytest.mark.usefixtures("saved")
async def test_runs_are_filtered_by_the_project_of_their_session(runs: RunService) -> None:
    assert (await runs.list_runs("ann", 0, 10, "owned", "apples")).cursor.total_count == 1
    assert (await runs.list_runs("ann", 0, 10, "owned", "pears")).cursor.total_count == 0


async def test_a_copy_is_the_copiers_own_and_outlives_its_source(
    saved: CheckpointRecord, copies: CopyService, checkpoints: CheckpointService, runs: RunService
) -> None:
    body = CopyWeightsRequest(source_path=saved.path, destination_project_id="pears")
    with pytest.raises(NotFound):
        await copies.copy("bob", body, "k", None)
    path = await copies.copy("bob", body, "k", "tml-anns-key")
    await checkpoints.delete(saved)
    copy = await checkpoints.loadable("bob", path)
    assert (copy.owner, copy.name, copy.size_bytes, copy.rank) == ("bob", "a", 3, 8)
    assert ((await checkpoints.folder(copy)) / "file").read_bytes() == b"abc"
    listed = await runs.list_runs("bob", 0, 10, "owned", "pears")
    assert [run.training_run_id for run in listed.training_runs] == [copy.run_id]


async def test_a_copy_is_made_once_per_idempotency_key(saved: CheckpointRecord, copies: CopyService) -> None:
    body = CopyWeightsRequest(source_path=saved.path, destination_project_id="p")
    first = await copies.copy("ann", body, "k", None)
    assert await copies.copy("ann", body, "k", None) == first
    assert await copies.copy("ann", body, "other", None) != first


async def test_a_copy_can_take_a_place_in_a_session_once(
    saved: CheckpointRecord, copies: CopyService
) -> None:
    body = CopyWeightsRequest(source_path=saved.path, session_id="s", model_seq_id=7)
    assert await copies.copy("ann", body, None, None) == "tinker://s:train:7/weights/a"
    assert await copies.copy("ann", body, None, None) == "tinker://s:train:7/weights/a"
    taken = CopyWeightsRequest(source_path="tinker://s:train:7/weights/a", session_id="s", model_seq_id=0)
    with pytest.raises(InvalidInput, match="is no copy"):
        await copies.copy("ann", taken, None, None)


async def test_an_interrupted_copy_is_made_again(
    saved: CheckpointRecord, copies: CopyService, checkpoints: CheckpointService
) -> None:
    body = CopyWeightsRequest(source_path=saved.path, session_id="s", model_seq_id=7)
    path = await copies.copy("ann", body, None, None)
    # What a process leaves behind that ends between reserving the run and finishing the files.
    await checkpoints.delete(await checkpoints.live(path))
    assert await copies.copy("ann", body, None, None) == path
    assert ((await checkpoints.folder(await checkpoints.live(path))) / "file").read_bytes() == b"abc"


@pytest.mark.parametrize("finished", [True, False])
async def test_no_model_takes_the_place_of_a_copy(
    stores: Stores,
    saved: CheckpointRecord,
    copies: CopyService,
    checkpoints: CheckpointService,
    finished: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = ModelRegistry()
    registry.bases = {saved.base_model: cast(BaseModel, None)}
    models = ModelService(registry, stores.futures, stores.catalog, checkpoints, max_rank=8)
    request = CreateModelRequest.model_validate(
        {"session_id": "s", "model_seq_id": 7, "base_model": saved.base_model, "lora_config": {"rank": 8}}
    )
    refused: list[Outcome | None] = []

    async def create_model() -> None:
        request_id = await models.create("ann", request)
        refused.append(await stores.futures.wait(request_id, "ann", 0))

    files = checkpoints.copy

    async def copy_while_a_model_is_created(*arguments: Any) -> CheckpointRecord:
        await create_model()
        return await files(*arguments)

    if not finished:
        monkeypatch.setattr(checkpoints, "copy", copy_while_a_model_is_created)
    body = CopyWeightsRequest(source_path=saved.path, session_id="s", model_seq_id=7)
    path = await copies.copy("ann", body, None, None)
    if finished:
        await create_model()
    (outcome,) = refused
    assert outcome is not None
    assert "use another model_seq_id" in (outcome.error or "")
    run = await stores.catalog.runs.get("s:train:7")
    assert run is not None
    assert run.copied_from == saved.path
    assert (await checkpoints.live(path)).size_bytes == 3


async def test_a_copy_needs_a_destination(saved: CheckpointRecord, copies: CopyService) -> None:
    with pytest.raises(InvalidInput, match="destination_project_id"):
        await copies.copy("ann", CopyWeightsRequest(source_path=saved.path), None, None)


async def test_a_copy_expires_by_its_own_ttl(
    saved: CheckpointRecord, copies: CopyService, checkpoints: CheckpointService
) -> None:
    await checkpoints.set_ttl(saved, 3600)
    body = CopyWeightsRequest(source_path=saved.path, destination_project_id="p")
    kept = await checkpoints.loadable("ann", await copies.copy("ann", body, "a", None))
    timed_body = body.model_copy(update={"ttl_seconds": 7200})
    timed = await checkpoints.loadable("ann", await copies.copy("ann", timed_body, "b", None))
    assert kept.expires_at is None
    assert timed.expires_at is not None
