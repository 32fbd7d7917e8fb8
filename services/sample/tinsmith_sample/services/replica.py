"""This process among those that sample on one store: it shows that it lives, and takes over from those that don't."""

import asyncio
import secrets
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from tinsmith_common.futures import FutureStore, PendingPromise, Topic
from tinsmith_common.observability import get_logger
from tinsmith_sample.services.sampling import SamplingService

_log = get_logger(__name__)

MISSED_BEATS = 3
"""So many beats in a row must be missing before a replica is taken for dead."""

_SWEEP_BEATS = 15


@dataclass
class _Seen:
    """How far another replica had counted, and for how many of our beats it has not gone on."""

    beats: int
    missed: int = 0


def new_replica_id(host: str, port: int) -> str:
    """A name that no other process has; up to the last slash it is the place where this one listens."""
    return f"{socket.gethostname()}/{host}:{port}/{secrets.token_hex(4)}"


class Replica:
    """Holds the leases of this process. Beats every third of `timeout_s`."""

    def __init__(self, futures: FutureStore, sampling: SamplingService, timeout_s: float) -> None:
        assert futures.holder is not None
        self.id = futures.holder
        self._leases = futures.leases
        self._notices = futures.notices
        self._sampling = sampling
        self._interval_s = timeout_s / MISSED_BEATS
        self._seen: dict[str, _Seen] = {}
        self._beats = 0
        self._freed = asyncio.Event()
        futures.notices.on(Topic.HOLDER, lambda _: self._freed.set())
        futures.notices.on(Topic.PROMISE, sampling.ended_elsewhere)

    async def join(self) -> None:
        """Take part, and take up what nobody works on, such as what a process before this one left in this place."""
        await self._take_up(await self._leases.join(self.id, self.id.rpartition("/")[0]), "nobody")

    async def run(self) -> None:
        """Beat and look after the others, until cancelled."""
        loop = asyncio.get_running_loop()
        next_beat = loop.time()
        while True:
            if loop.time() >= next_beat:
                next_beat = loop.time() + self._interval_s
                await _logged(self._beat())
            try:
                async with asyncio.timeout_at(next_beat):
                    await self._freed.wait()
            except TimeoutError:
                continue
            self._freed.clear()
            await _logged(self._take_free())

    async def leave(self) -> None:
        """Hand everything back; others take it at once."""
        await _logged(self._leases.leave(self.id))

    async def _beat(self) -> None:
        running = self._sampling.running
        others = await self._leases.beat(self.id)
        self._beats += 1
        if not others.kept:
            _log.warning("this replica was taken for dead: letting go of what others have taken over")
            await self.join()
        if not others.kept or (others.beats and not self._notices.live):
            self._sampling.let_go(running - await self._leases.held(self.id))
        await self._look_after(others.beats)

    async def _look_after(self, beats: dict[str, int]) -> None:
        left = self._seen.keys() - beats.keys()
        for name in left:
            del self._seen[name]
        if left or self._beats % _SWEEP_BEATS == 0:
            await self._take_free()
        for name, count in beats.items():
            seen = self._seen.setdefault(name, _Seen(count, -1))
            seen.missed = seen.missed + 1 if seen.beats == count else 0
            seen.beats = count
            if seen.missed >= MISSED_BEATS:
                del self._seen[name]
                await self._take_up(await self._leases.take(self.id, name, count), name)

    async def _take_free(self) -> None:
        await self._take_up(await self._leases.take_free(self.id), "a replica that left")

    async def _take_up(self, promises: list[PendingPromise], left_by: str) -> None:
        if promises:
            _log.info("unfinished samples taken up", count=len(promises), of=left_by)
            await self._sampling.take_up(promises)


async def _logged(step: Coroutine[Any, Any, None]) -> None:
    """What fails here succeeds later, or at another replica."""
    try:
        await step
    except Exception as error:
        _log.warning("the store did not take what this replica had to say", reason=str(error))
