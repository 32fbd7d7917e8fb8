"""Inflight weights as the train service keeps them, on real stores."""

from pathlib import Path

import pytest_asyncio

from tinsmith_common.catalog import CheckpointRecord, RunRecord, SamplingSessionRecord
from tinsmith_common.stores import Stores
from tinsmith_train.services.checkpoints import CheckpointService


@pytest_asyncio.fixture
async def run(stores: Stores, saved: CheckpointRecord) -> RunRecord:
    run = await stores.catalog.runs.get(saved.run_id)
    assert run is not None
    return run


async def _publish(checkpoints: CheckpointService, run: RunRecord, *versions: int) -> None:
    for version in versions:

        async def fill(folder: Path, content: str = str(version)) -> None:
            (folder / "weights").write_text(content)

        await checkpoints.publish_inflight(run, version, fill)


async def test_the_target_is_what_was_saved_last(
    stores: Stores, checkpoints: CheckpointService, run: RunRecord
) -> None:
    await _publish(checkpoints, run, 4, 11)
    record = await stores.catalog.inflight.get(run.id)
    assert record is not None
    assert (stores.checkpoints.folder(record.weights_key) / "weights").read_text() == "11"


async def test_only_the_newest_weights_and_those_before_stay(
    stores: Stores, checkpoints: CheckpointService, run: RunRecord
) -> None:
    abandoned = stores.checkpoints.begin(f"{run.id}/inflight/1")
    await _publish(checkpoints, run, 2, 3, 10, 20)
    assert sorted(path.name for path in abandoned.parent.iterdir()) == ["10", "20"]


async def test_named_checkpoints_of_the_run_stay(
    stores: Stores, checkpoints: CheckpointService, run: RunRecord, saved: CheckpointRecord
) -> None:
    await _publish(checkpoints, run, 1, 2, 3)
    assert (stores.checkpoints.folder(saved.key) / "file").read_bytes() == b"abc"


async def test_the_end_of_the_session_takes_its_inflight_weights_along(
    stores: Stores, checkpoints: CheckpointService, run: RunRecord
) -> None:
    await _publish(checkpoints, run, 1, 2)
    sampler = SamplingSessionRecord("s:sample:0", "s", "ann", "base", run.created_at, inflight_run=run.id)
    await stores.catalog.sampling_sessions.create(sampler)
    folder = stores.checkpoints.folder(f"{run.id}/inflight")
    await checkpoints.delete_snapshots("s")
    assert not folder.exists()
    assert await stores.catalog.inflight.get(run.id) is None
    assert await stores.catalog.sampling_sessions.get(sampler.id) is None
