"""From a sampling session to the adapter its samples need."""

import asyncio
from dataclasses import replace

from tinsmith_common.catalog import Catalog, SamplingSessionRecord
from tinsmith_common.checkpoints import CheckpointStore
from tinsmith_common.errors import NotFound
from tinsmith_sample.engines.base import Adapter


class AdapterLocator:
    """Finds the PEFT folder behind a session's weights."""

    def __init__(self, catalog: Catalog, checkpoints: CheckpointStore) -> None:
        self._catalog = catalog
        self._checkpoints = checkpoints

    async def locate(self, session: SamplingSessionRecord) -> Adapter | None:
        """The session's adapter, None for a session on the base model. Raises `NotFound` when it was deleted."""
        if session.inflight_run is not None:
            return await self._newest(session, session.inflight_run)
        return None if session.weights_key is None else await self.find(session.weights_key)

    async def find(self, key: str) -> Adapter:
        """The adapter that the checkpoint store keeps under `key`. Raises `NotFound`."""
        return await asyncio.to_thread(self._find, key)

    async def _newest(self, session: SamplingSessionRecord, run_id: str) -> Adapter:
        """What the run saved last. Weights may be replaced, and go, at any moment; then there are newer ones."""
        key = await self._newest_key(run_id)
        while True:
            try:
                found = await self.find(key)
            except NotFound:
                gone, key = key, await self._newest_key(run_id)
                if key == gone:
                    raise
            else:
                return replace(found, line=run_id, cache_namespace=session.id)

    async def _newest_key(self, run_id: str) -> str:
        record = await self._catalog.inflight.get(run_id)
        if record is None:
            raise NotFound(
                f"the inflight weights of model {run_id} are gone: the session they were made in has ended"
            )
        return record.weights_key

    def _find(self, key: str) -> Adapter:
        folder = self._checkpoints.folder(key)
        try:
            stat = (folder / "adapter_config.json").stat()
        except FileNotFoundError as error:
            raise NotFound(f"the weights of {key} were deleted") from error
        # A name can be deleted and saved again; a new file is a new adapter.
        return Adapter(key=f"{key}@{stat.st_mtime_ns}.{stat.st_ino}", folder=folder)
