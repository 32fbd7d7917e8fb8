"""Which adapters the engine holds: loaded on first use, kept while in use, superseded and least recently used out
first."""

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tinsmith_common.errors import TinsmithError
from tinsmith_sample.engines.base import Adapter, ResidentAdapter

_log = logging.getLogger(__name__)

Load = Callable[[str, Adapter], Awaitable[None]]
Unload = Callable[[str], Awaitable[None]]


@dataclass
class _Resident:
    name: str
    line: str | None
    loaded: asyncio.Future[None]
    users: int = 0


class AdapterCache:
    """At most `capacity` adapters in the engine at a time.

    `load` and `unload` are given the name an adapter has inside the engine. Names are versioned and never used
    twice, because SGLang brings a name back from its old folder when it is asked for again.
    """

    def __init__(self, capacity: int, load: Load, unload: Unload) -> None:
        self._capacity = capacity
        self._load = load
        self._unload = unload
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._versions = itertools.count(1)
        self._changed = asyncio.Condition()
        self.stuck = 0
        """Adapters that could not be unloaded."""

    def __len__(self) -> int:
        return len(self._residents)

    def residents(self) -> tuple[ResidentAdapter, ...]:
        """What is held or being loaded, the one that was used longest ago first."""
        return tuple(
            ResidentAdapter(key, held.name, held.loaded.done(), held.users)
            for key, held in self._residents.items()
        )

    def forget(self) -> None:
        """The engine was replaced and holds nothing."""
        self._residents.clear()
        self.stuck = 0

    @asynccontextmanager
    async def use(self, adapter: Adapter) -> AsyncGenerator[str]:
        """The adapter's name in the engine; it stays there until the block is left.

        Waits for a free place when every resident is in use. Raises what `load` raises.
        """
        resident = await self._pin(adapter)
        try:
            # Shielded: others may be waiting for the same load.
            await asyncio.shield(resident.loaded)
            yield resident.name
        finally:
            resident.users -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _pin(self, adapter: Adapter) -> _Resident:
        async with self._changed:
            while (resident := self._residents.get(adapter.key)) is None:
                if len(self._residents) < self._capacity:
                    resident = self._begin_load(adapter)
                    break
                victim = next((key for key, held in self._residents.items() if held.users == 0), None)
                if victim is None:
                    await self._changed.wait()
                else:
                    await self._evict(victim)
            self._residents.move_to_end(adapter.key)
            resident.users += 1
            return resident

    def _begin_load(self, adapter: Adapter) -> _Resident:
        for key in [key for key, held in self._residents.items() if adapter.line == held.line is not None]:
            self._residents.move_to_end(key, last=False)  # nobody will ask for it again
        name = f"v{next(self._versions)}"
        resident = _Resident(name, adapter.line, asyncio.ensure_future(self._load(name, adapter)))
        self._residents[adapter.key] = resident

        def drop_if_failed(loaded: asyncio.Future[None]) -> None:
            failed = loaded.cancelled() or loaded.exception() is not None
            if failed and self._residents.get(adapter.key) is resident:
                del self._residents[adapter.key]

        resident.loaded.add_done_callback(drop_if_failed)
        return resident

    async def _evict(self, key: str) -> None:
        resident = self._residents.pop(key)
        try:
            await self._unload(resident.name)
        except TinsmithError as error:
            # Its name is never used again, so all it costs is memory until the engine restarts.
            self.stuck += 1
            _log.warning("adapter %s could not be unloaded: %s", resident.name, error.message)
