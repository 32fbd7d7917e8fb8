"""This process among those that sample on one store: it shows that it lives, and takes over from those that don't."""

import asyncio
import secrets
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from tinsmith_common.futures import FutureStore, PendingPromise, Pulse, Topic
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


def place_of(replica_id: str) -> str:
    """Where a replica listens, which the next process there has in common with it."""
    return replica_id.rpartition("/")[0]


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
        self._retiring = False
        self._freed = asyncio.Event()
        futures.notices.on(Topic.HOLDER, lambda _: self._freed.set())
        futures.notices.on(Topic.PROMISE, sampling.ended_elsewhere)

    async def join(self) -> None:
        """Take part, and take up what nobody works on, such as what a process before this one left in this place."""
        await self._take_up(await self._leases.join(self.id, place_of(self.id), self._interval_s), "nobody")

    def retire(self) -> None:
        """Take up nothing more. What is held stays held until `leave`."""
        self._retiring = True

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
            if not self._retiring:
                await self.join()
        untold = bool(others.pulses) and not self._notices.live
        if untold or not others.kept:
            self._sampling.let_go(running - await self._leases.held(self.id))
        if not self._retiring:
            await self._look_after(others.pulses, untold=untold)

    async def _look_after(self, others: dict[str, Pulse], *, untold: bool) -> None:
        left = self._seen.keys() - others.keys()
        for name in left:
            del self._seen[name]
        if left or untold or self._beats % _SWEEP_BEATS == 0:
            await self._take_free()
        for name, pulse in others.items():
            if self._is_dead(name, pulse):
                del self._seen[name]
                await self._take_up(await self._leases.take(self.id, name, pulse.beats), name)

    def _is_dead(self, name: str, pulse: Pulse) -> bool:
        seen = self._seen.setdefault(name, _Seen(pulse.beats, -1))
        seen.missed = seen.missed + 1 if seen.beats == pulse.beats else 0
        seen.beats = pulse.beats
        # Counted in beats of our own: while this process, or the store, stood still, nobody seems to be dead.
        return seen.missed >= MISSED_BEATS and seen.missed * self._interval_s >= MISSED_BEATS * pulse.beat_s

    async def _take_free(self) -> None:
        if self._retiring:
            return
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
