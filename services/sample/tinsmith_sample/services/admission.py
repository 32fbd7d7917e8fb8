"""Who goes next into a full engine: the lines of all who wait, each in turn.

SGLang runs requests in the order of their arrival. What it is given is therefore bounded to a little more than it
runs at a time, so that its batch stays full, and the rest waits here.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from tinsmith_sample.engines.base import SamplingEngine

_AHEAD = 8
"""An engine is given an eighth more than it runs, to fill a place in its batch as soon as it is free."""


@dataclass(frozen=True)
class _Waiter:
    granted: asyncio.Future[None]
    count: int


class Admission:
    """Places in one engine. `places` tells how many there are now. Used from one event loop."""

    def __init__(self, places: Callable[[], int]) -> None:
        self._places = places
        self._taken = 0
        self._lines: OrderedDict[str, deque[_Waiter]] = OrderedDict()

    @property
    def taken(self) -> int:
        """Places in use."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Those who wait for places, in all lines."""
        return sum(not waiter.granted.done() for line in self._lines.values() for waiter in line)

    @asynccontextmanager
    async def place(self, line: str, count: int) -> AsyncGenerator[None]:
        """Hold `count` places; waits for its turn if the engine is full.

        The last one let in may take more than there are: one that needs many would wait for ever otherwise.
        """
        await self._enter(line, count)
        try:
            yield
        finally:
            self._leave(count)

    async def _enter(self, line: str, count: int) -> None:
        if not self._lines and self._taken < self._places():
            self._taken += count
            return
        waiter = _Waiter(asyncio.get_running_loop().create_future(), count)
        self._lines.setdefault(line, deque()).append(waiter)
        self._admit()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self._leave(count)
            raise

    def _leave(self, count: int) -> None:
        self._taken -= count
        self._admit()

    def _admit(self) -> None:
        while self._lines and self._taken < self._places():
            name, line = self._lines.popitem(last=False)
            waiter = line.popleft()
            if line:
                self._lines[name] = line  # behind all others
            if not waiter.granted.done():  # it may have been cancelled
                self._taken += waiter.count
                waiter.granted.set_result(None)


class Engines(Mapping[str, SamplingEngine]):
    """The engines by base model, and the admission to each.

    `max_running`: samples given to an engine at a time; None: what it runs, and an eighth more.
    """

    def __init__(self, engines: Mapping[str, SamplingEngine], max_running: int | None = None) -> None:
        self._engines = dict(engines)
        self._admission = {
            model: Admission(lambda engine=engine: max_running or engine.capacity + engine.capacity // _AHEAD)
            for model, engine in self._engines.items()
        }

    def place(self, model: str, line: str, count: int) -> AbstractAsyncContextManager[None]:
        """See `Admission.place`."""
        return self._admission[model].place(line, count)

    def waiting(self, model: str) -> int:
        """Requests that wait for a place."""
        return self._admission[model].waiting

    def __getitem__(self, model: str) -> SamplingEngine:
        return self._engines[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)
