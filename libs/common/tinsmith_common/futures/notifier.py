"""Wake-ups inside one process: who waits for which promise."""

import asyncio
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from tinsmith_common.futures.types import Outcome


class Notifier:
    """Hands an outcome to every waiter of its promise. Used from one event loop."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Future[Outcome]]] = defaultdict(set)

    @contextmanager
    def subscribe(self, request_id: str) -> Generator[asyncio.Future[Outcome], None, None]:
        """A future that resolves with the outcome if it is published meanwhile."""
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiters[request_id].add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[request_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[request_id]

    def publish(self, request_id: str, outcome: Outcome) -> None:
        """Wake everyone who waits for this promise."""
        for waiter in self._waiters.get(request_id, ()):
            if not waiter.done():
                waiter.set_result(outcome)
