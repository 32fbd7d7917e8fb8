"""From a sampling session to the adapter its samples need."""

import asyncio

from tinsmith_common.catalog import SamplingSessionRecord
from tinsmith_common.checkpoints import CheckpointStore
from tinsmith_sample.engines.base import Adapter


class AdapterLocator:
    """Finds the PEFT folder behind a session's weights."""

    def __init__(self, checkpoints: CheckpointStore) -> None:
        self._checkpoints = checkpoints

    async def locate(self, session: SamplingSessionRecord) -> Adapter | None:
        """The session's adapter, None for a session on the base model. Raises `NotFound` when it was deleted."""
        return None if session.weights_key is None else await self.find(session.weights_key)

    async def find(self, key: str) -> Adapter:
        """The adapter that the checkpoint store keeps under `key`. Raises `NotFound`."""
        return await asyncio.to_thread(self._find, key)

    def _find(self, key: str) -> Adapter:
        folder = self._checkpoints.folder(key)
        # A name can be deleted and saved again; a new file is a new adapter.
        stat = (folder / "adapter_config.json").stat()
        return Adapter(key=f"{key}@{stat.st_mtime_ns}.{stat.st_ino}", folder=folder)
