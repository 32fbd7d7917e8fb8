"""What the process says when it cannot start."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

pytestmark = pytest.mark.slow


async def make_newer(settings: CommonSettings) -> None:
    stores = Stores.build(settings, "train")
    await stores.open()
    async with stores.database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await stores.close()


def test_a_store_of_a_newer_version_ends_the_service_with_one_line(tmp_path: Path) -> None:
    asyncio.run(make_newer(CommonSettings(metadata_dir=tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "tinsmith_train"],
        env={**os.environ, "METADATA_DIR": str(tmp_path), "TRAINING_HOST": "127.0.0.1", "TRAINING_PORT": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "by a newer Tinsmith: start that version" in said
    assert "Traceback" not in said
