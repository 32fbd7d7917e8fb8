"""Wake-ups inside one process: who waits for what."""

import asyncio
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Notifier(Generic[T]):
    """Hands what is published under a name to everyone who waits there. Used from one event loop."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Future[T]]] = defaultdict(set)

    @contextmanager
    def subscribe(self, name: str) -> Generator[asyncio.Future[T], None, None]:
        """A future that resolves with what is published first meanwhile."""
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiters[name].add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[name]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[name]

    def publish(self, name: str, value: T) -> None:
        """Wake everyone who waits for this."""
        for waiter in self._waiters.get(name, ()):
            if not waiter.done():
                waiter.set_result(value)

    def publish_all(self, value: T) -> None:
        """Wake everyone."""
        for name in self._waiters:
            self.publish(name, value)
