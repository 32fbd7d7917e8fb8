"""Wakes what waits in the other processes on the same store: LISTEN and NOTIFY of Postgres."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from tinsmith_common.database import Database
from tinsmith_common.observability import get_logger

_log = get_logger(__name__)

_CHANNEL = "tinsmith"
_NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"
# Postgres takes up to 8,000 bytes in one notification.
_PAYLOAD_BYTES = 7900
_BATCH = 1000
_CHECK_S = 15.0
_RECONNECT_S = 1.0
_LAST_WORDS_S = 2.0


class Topic(StrEnum):
    """What a notice is about."""

    PROMISE = "promise"
    """A promise ended."""
    QUEUE = "queue"
    """A completion queue has a new event."""
    HOLDER = "holder"
    """A holder of leases let them go."""


class Notices:
    """Short messages to all other processes on one Postgres store.

    They are hints: what they tell is in the store before they are sent, and one may be lost. So readers look by
    themselves too, and more often while not `live`, as it always is on SQLite. They travel over one connection of
    their own, many in a statement: a NOTIFY in each transaction would have Postgres commit them one by one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._handlers: defaultdict[Topic, list[Callable[[str], None]]] = defaultdict(list)
        self._gap_handlers: list[Callable[[], None]] = []
        self._outgoing: dict[tuple[Topic, str], None] = {}
        self._wanted = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._connection: Any = None
        self._sending = asyncio.Lock()

    @property
    def live(self) -> bool:
        """Whether what the others say arrives now."""
        return self._connection is not None

    def on(self, topic: Topic, handler: Callable[[str], None]) -> None:
        """Call `handler` with the name in every notice of another process about that topic."""
        self._handlers[topic].append(handler)

    def on_gap(self, handler: Callable[[], None]) -> None:
        """Call `handler` whenever notices may have been missed."""
        self._gap_handlers.append(handler)

    def send(self, topic: Topic, name: str) -> None:
        """Tell the others; returns at once."""
        if self._serving is not None:
            self._outgoing[topic, name] = None
            self._wanted.set()

    def open(self) -> None:
        """Begin to listen in the background. Does nothing on SQLite."""
        if self._database.is_postgres and self._serving is None:
            self._serving = asyncio.create_task(self._serve())

    async def close(self) -> None:
        """Send what is to be sent, and stop listening."""
        if self._serving is None:
            return
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_LAST_WORDS_S):
                while self.live and self._outgoing:
                    await self._flush()
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._serving = None

    async def _serve(self) -> None:
        while True:
            try:
                async with self._database.postgres_connection() as connection:
                    await self._listen(connection)
                _log.warning("the store closed the connection for notices; opening another")
            except Exception as error:
                _log.warning("no notices from the store; trying again", reason=str(error))
            finally:
                self._connection = None
            # Whoever waits for a notice looks, and from now on more often.
            self._tell_gap()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen(self, connection: Any) -> None:
        connection.add_termination_listener(self._terminated)
        await connection.add_listener(_CHANNEL, self._received)
        self._connection = connection
        self._tell_gap()
        while not connection.is_closed():
            await self._flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_S):
                    await self._wanted.wait()
            self._wanted.clear()

    async def _flush(self) -> None:
        """Send what has gathered. Without anything it is a check of the connection."""
        async with self._sending:
            batch = list(self._outgoing)[:_BATCH]
            for item in batch:
                del self._outgoing[item]
            if self._outgoing:
                self._wanted.set()
            await self._connection.execute(_NOTIFY, _CHANNEL, _payloads(batch))

    def _terminated(self, _connection: Any) -> None:
        self._wanted.set()

    def _received(self, connection: Any, pid: int, _channel: str, payload: object) -> None:
        if pid == connection.get_server_pid():
            return  # our own
        for topic, name in json.loads(str(payload)):
            for handler in self._handlers.get(topic, ()):
                handler(name)

    def _tell_gap(self) -> None:
        for handler in self._gap_handlers:
            handler()


def _payloads(batch: list[tuple[Topic, str]]) -> list[str]:
    """The notices as few JSON lists, none of them too long to be sent. One that is too long alone is left out."""
    payloads, size = list[list[str]](), _PAYLOAD_BYTES
    for topic, name in batch:
        text = json.dumps([topic, name])
        if len(text) + 2 > _PAYLOAD_BYTES:
            continue
        if size + len(text) + 2 > _PAYLOAD_BYTES:
            payloads.append([])
            size = 0
        payloads[-1].append(text)
        size += len(text) + 2
    return [f"[{', '.join(items)}]" for items in payloads]
