"""Real stores with a run and a checkpoint of ann's."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from tinsmith_common.auth import ApiKeys, Authenticator
from tinsmith_common.catalog import CheckpointRecord, RunRecord, SessionRecord
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores
from tinsmith_train.services.audit import AuditLog
from tinsmith_train.services.checkpoints import CheckpointService

NOW = datetime.now(UTC)


@pytest_asyncio.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    stores = Stores.build(CommonSettings(metadata_dir=tmp_path), "train")
    await stores.open()
    yield stores
    await stores.close()


@pytest_asyncio.fixture
async def saved(stores: Stores) -> CheckpointRecord:
    run_id = "s:train:0"
    await stores.catalog.sessions.create(SessionRecord("s", "ann", NOW, NOW, project_id="apples"))
    await stores.catalog.runs.create(
        RunRecord(run_id, "s", "ann", "base", 8, 32.0, True, True, False, NOW, NOW)
    )
    record = CheckpointRecord(
        path=f"tinker://{run_id}/weights/a",
        run_id=run_id,
        owner="ann",
        kind="weights",
        name="a",
        key=f"{run_id}/weights/a",
        size_bytes=3,
        created_at=NOW,
        base_model="base",
        rank=8,
        alpha=32.0,
        train_attn=True,
        train_mlp=True,
        train_unembed=False,
    )
    await stores.catalog.checkpoints.create(record)
    with stores.checkpoints.write(record.key) as folder:
        (folder / "file").write_bytes(b"abc")
    return record


@pytest.fixture
def checkpoints(stores: Stores) -> CheckpointService:
    """Whose one known credential, `anns-key`, is ann's."""
    authenticator = Authenticator("anns-key", ApiKeys(stores.database), owner="ann")
    return CheckpointService(stores.catalog, stores.checkpoints, authenticator, AuditLog(stores.catalog))
