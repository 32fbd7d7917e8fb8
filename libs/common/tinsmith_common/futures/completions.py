"""What ended, in order: the log behind `retrieve_futures`.

Every ending of a sample is one event of its queue, written in the transaction that ends the promise. So any
process can answer a poll, and a restart forgets nothing.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from tinsmith_common.database import Database, core
from tinsmith_common.futures.notices import Notices, Topic
from tinsmith_common.futures.notifier import Notifier
from tinsmith_common.futures.tables import CompletionQueueRow, CompletionRow

CLONE_STRIDE = 10**9
"""The SDK gives each clone of a sampling client its own range of this many `seq_id`s."""

BATCH_LIMIT = 1000
"""Events in one answer; the next poll gets the rest at once."""

# Only events of other processes are found this way, where they cannot send notices, or one was lost.
_RECHECK_S = 5.0
_RECHECK_ALONE_S = 0.5


@dataclass(frozen=True)
class Completion:
    """One promise that ended. `payload_bytes` of its result; None when it failed."""

    request_id: str
    payload_bytes: int | None


@dataclass(frozen=True)
class CompletionBatch:
    """Events after a cursor, oldest first, and the cursor after them."""

    completions: tuple[Completion, ...]
    cursor: int


def completion_queue(sampling_session_id: str, clone: int) -> str:
    """The queue of one sampling client: a session may have clones in several processes."""
    return f"{sampling_session_id}/{clone}"


def event_number(moment: datetime) -> int:
    """The least number of an event at that time, in ms since 1970.

    Numbers grow with time, so a cursor stays valid when its queue was cleaned up, or its store lost.
    """
    return int(moment.timestamp() * 1000)


class CompletionLog:
    """Events by queue, each numbered above those before it."""

    def __init__(self, database: Database, notices: Notices) -> None:
        self._database = database
        self._notices = notices
        self._notifier: Notifier[None] = Notifier()
        self._closing = False
        notices.on(Topic.QUEUE, lambda queue: self._notifier.publish(queue, None))
        notices.on_gap(lambda: self._notifier.publish_all(None))
        self._next_number = database.next_number(CompletionQueueRow)
        self._insert = insert(core(CompletionRow))

    async def append(
        self, connection: AsyncConnection, queue: str, owner: str, completion: Completion
    ) -> None:
        """Record an ending, in the caller's transaction. `announce` once it is committed."""
        # Numbering locks the queue's row until the commit: events become visible in the order of their numbers.
        number = {"name": queue, "at_least": event_number(datetime.now(UTC))}
        event = (await connection.execute(self._next_number, number)).scalar_one()
        row = CompletionRow(
            request_id=completion.request_id,
            queue=queue,
            event=event,
            owner=owner,
            payload_bytes=completion.payload_bytes,
        )
        await connection.execute(self._insert, row.model_dump())

    def announce(self, queue: str) -> None:
        """Wake who waits for events of this queue."""
        self._notifier.publish(queue, None)
        self._notices.send(Topic.QUEUE, queue)

    def stop_waiting(self) -> None:
        """Answer all polls now, and later ones at once."""
        self._closing = True
        self._notifier.publish_all(None)

    async def wait(self, queue: str, owner: str, cursor: int, timeout_s: float) -> CompletionBatch:
        """Events after `cursor`: at once if there are any, else the first within `timeout_s`, else none.

        An older cursor can be asked again; it answers the same events, less those acknowledged.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            with self._notifier.subscribe(queue) as woken:
                batch = await self._read(queue, owner, cursor)
                remaining = deadline - loop.time()
                if batch.completions or remaining <= 0 or self._closing:
                    return batch
                recheck_s = _RECHECK_S if self._notices.live else _RECHECK_ALONE_S
                await asyncio.wait({woken}, timeout=min(recheck_s, remaining))

    async def among(self, queue: str, owner: str, request_ids: Sequence[str]) -> tuple[str, ...]:
        """Those of the requests that have an event in this queue."""
        fetched = _column(CompletionRow.request_id).in_(request_ids)
        query = select(_column(CompletionRow.request_id)).where(fetched, *_of(queue, owner))
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def forget(
        self, connection: AsyncConnection, queue: str, owner: str, request_ids: Sequence[str]
    ) -> None:
        """Drop the events of results that were fetched."""
        fetched = _column(CompletionRow.request_id).in_(request_ids)
        await connection.execute(delete(CompletionRow).where(fetched, *_of(queue, owner)))

    async def expire(self, connection: AsyncConnection, before: datetime) -> None:
        """Drop what happened before that time, and queues without any event since."""
        number = event_number(before)
        await connection.execute(delete(CompletionRow).where(_column(CompletionRow.event) < number))
        await connection.execute(
            delete(CompletionQueueRow).where(_column(CompletionQueueRow.last_event) < number)
        )

    async def _read(self, queue: str, owner: str, cursor: int) -> CompletionBatch:
        query = (
            select(core(CompletionRow))
            .where(*_of(queue, owner), _column(CompletionRow.event) > cursor)
            .order_by(_column(CompletionRow.event))
            .limit(BATCH_LIMIT)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        completions = tuple(Completion(row.request_id, row.payload_bytes) for row in rows)
        return CompletionBatch(completions, rows[-1].event if rows else cursor)


def _of(queue: str, owner: str) -> tuple[Any, Any]:
    return _column(CompletionRow.queue) == queue, _column(CompletionRow.owner) == owner


def _column(attribute: Any) -> Any:
    return attribute.property.columns[0]
