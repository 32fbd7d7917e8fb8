"""Real stores in a temporary folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores


@pytest_asyncio.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    stores = Stores.build(CommonSettings(metadata_dir=tmp_path), "train")
    await stores.open()
    yield stores
    await stores.close()
