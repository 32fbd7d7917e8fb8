"""The promise store: submit, resolve or fail once, wait, find what is unfinished, expire."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, select, update

from tinsmith_common.blobs import BlobStore
from tinsmith_common.catalog.usage import UsageLedger
from tinsmith_common.database import Database, core
from tinsmith_common.errors import Category, NotFound, PromiseLost
from tinsmith_common.futures.bodies import payload_key, request_key
from tinsmith_common.futures.completions import Completion, CompletionLog
from tinsmith_common.futures.leases import Leases, pending_promise
from tinsmith_common.futures.metrics import WorkMetrics
from tinsmith_common.futures.notices import Notices, Topic
from tinsmith_common.futures.notifier import Notifier
from tinsmith_common.futures.spans import Spans
from tinsmith_common.futures.tables import PromiseRow
from tinsmith_common.futures.types import (
    JSON,
    Outcome,
    PendingPromise,
    PromiseKind,
    Service,
    Submission,
    Work,
)
from tinsmith_common.observability import received_at

INLINE_LIMIT_BYTES = 256 * 1024
"""Bodies up to this size live in the row, larger ones in the blob store."""

# Between two looks at what should wake its waiters, and at what may not.
_RECHECK_S = 5.0
_RECHECK_UNTOLD_S = 0.5


class FutureStore:
    """Promises of one service, and a view of the other's.

    What this process ends wakes its waiters at once; of what others end, `notices` tell. Where there are none
    (SQLite), waiters look every half second.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        service: Service,
        metrics: WorkMetrics,
        notices: Notices,
        leases: Leases,
        holder: str | None = None,
    ) -> None:
        self.holder = holder
        """Who carries out what is submitted here, in a service of several processes."""
        self.leases = leases
        self.notices = notices
        self._closing = False
        self._database = database
        self._blobs = blobs
        self._service = service
        self._metrics = metrics
        self._usage = UsageLedger(database)
        self.spans = Spans(database)
        # None: look again.
        self._notifier: Notifier[Outcome | None] = Notifier()
        self.completions = CompletionLog(database, notices)
        notices.on(Topic.PROMISE, lambda request_id: self._notifier.publish(request_id, None))
        notices.on_gap(lambda: self._notifier.publish_all(None))
        # Kept, because making a statement costs SQLAlchemy as much as executing it.
        self._insert = database.insert_if_absent(PromiseRow, None, "request_id")
        self._select = select(core(PromiseRow)).where(_row(bindparam("id")))
        self._end = (
            update(core(PromiseRow))
            .where(_row(bindparam("id")), _column(PromiseRow.state) == "pending")
            .returning(*map(_column, (PromiseRow.owner, PromiseRow.kind, PromiseRow.created_at)))
        )

    async def submit(
        self, request_id: str, kind: PromiseKind, owner: str, request: bytes | None = None
    ) -> Submission:
        """Record a promise under its natural key. `request` is kept for a restart to run again.

        Repeating a submission answers the same promise with `created=False`. Raises `NotFound` when the
        key belongs to another owner.
        """
        in_blob = request is not None and len(request) > INLINE_LIMIT_BYTES
        if request is not None and in_blob:
            await asyncio.to_thread(self._blobs.put, request_key(request_id), request)
        row = PromiseRow(
            request_id=request_id,
            session_id=request_id.partition(":")[0],
            kind=kind,
            service=self._service,
            owner=owner,
            holder=self.holder,
            request=None if in_blob else request,
            request_in_blob=in_blob,
            created_at=received_at(),
        )
        async with self._database.write() as connection:
            created = (await connection.execute(self._insert, row.model_dump())).rowcount == 1
            if not created:
                query = select(_column(PromiseRow.owner)).where(_row(request_id))
                known_owner = (await connection.execute(query)).scalar_one()
                if known_owner != owner:
                    raise NotFound(f"{request_id} belongs to another account")
        return Submission(request_id, created)

    async def resolve(
        self,
        request_id: str,
        payload: bytes,
        media_type: str = JSON,
        *,
        queue: str | None = None,
        work: Work | None = None,
    ) -> None:
        """End a pending promise with its result, an event of `queue` if that is given.

        What `work` used is counted in the same transaction. The first ending wins; later ones change and count
        nothing.
        """
        in_blob = len(payload) > INLINE_LIMIT_BYTES
        if in_blob:
            await asyncio.to_thread(self._blobs.put, payload_key(request_id), payload)
        values = {
            "state": "done",
            "payload": None if in_blob else payload,
            "payload_in_blob": in_blob,
            "media_type": media_type,
        }
        await self._finish(request_id, values, Outcome(payload, media_type), queue, work)

    async def fail(
        self,
        request_id: str,
        message: str,
        category: Category,
        *,
        queue: str | None = None,
        work: Work | None = None,
    ) -> None:
        """End a pending promise with an error the client will see."""
        await self._finish(request_id, *_failure(message, category), queue, work)

    async def cancel(self, request_id: str, owner: str, *, queue: str | None = None) -> bool:
        """Fail a pending promise of this service because its owner gave it up.

        Returns whether it was pending; one that is unknown, finished or somebody else's stays as it is.
        """
        values, outcome = _failure("cancelled by the client", "user", state="cancelled")
        mine = (_column(PromiseRow.owner) == owner, _column(PromiseRow.service) == self._service)
        return await self._finish(request_id, values, outcome, queue, None, *mine)

    async def acknowledge(self, queue: str, owner: str, request_ids: Sequence[str]) -> None:
        """Drop bodies and events of results that their owner has fetched. The promises stay known.

        What is not finished, or not of this queue, is left alone.
        """
        fetched = await self.completions.among(queue, owner, request_ids)
        if not fetched:
            return
        bodies = {"payload": None, "payload_in_blob": False, "request": None, "request_in_blob": False}
        row = _column(PromiseRow.request_id).in_(fetched)
        async with self._database.write() as connection:
            await connection.execute(update(core(PromiseRow)).where(row).values(**bodies))
            await self.completions.forget(connection, queue, owner, fetched)
        await asyncio.to_thread(lambda: [self._forget_blobs(request_id) for request_id in fetched])

    async def wait(self, request_id: str, owner: str, timeout_s: float) -> Outcome | None:
        """The outcome, or None when there is none within `timeout_s`. Can be asked again and again.

        Raises `PromiseLost` for a promise that is unknown, expired, or somebody else's.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            # Subscribed before the look: an outcome between look and subscription would be missed.
            with self._notifier.subscribe(request_id) as woken:
                row = await self._read(request_id, owner)
                if row.state != "pending":
                    return await self._outcome(row)
                remaining = deadline - loop.time()
                if remaining <= 0 or self._closing:
                    return None
                await asyncio.wait({woken}, timeout=min(self._recheck_s(row), remaining))
                if woken.done() and (outcome := woken.result()) is not None:
                    return outcome

    def stop_waiting(self) -> None:
        """Answer all polls now, and later ones at once: this process is about to end."""
        self._closing = True
        self._notifier.publish_all(None)
        self.completions.stop_waiting()

    async def pending(self) -> list[PendingPromise]:
        """Unfinished promises of this service, oldest first."""
        query = (
            select(core(PromiseRow))
            .where(_column(PromiseRow.service) == self._service, _column(PromiseRow.state) == "pending")
            .order_by(_column(PromiseRow.created_at))
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return await asyncio.to_thread(lambda: [pending_promise(row, self._blobs) for row in rows])

    async def expire(self, age: timedelta) -> int:
        """Forget promises that ended longer than `age` ago, with their events. Returns how many."""
        cutoff = datetime.now(UTC) - age
        old = _column(PromiseRow.finished_at) < cutoff
        async with self._database.read() as connection:
            rows = (
                (await connection.execute(select(_column(PromiseRow.request_id)).where(old))).scalars().all()
            )
        for request_id in rows:
            await asyncio.to_thread(self._forget_blobs, request_id)
        async with self._database.write() as connection:
            await self.spans.keep(connection, old)
            await connection.execute(delete(PromiseRow).where(old))
            await self.completions.expire(connection, cutoff)
        return len(rows)

    async def _finish(
        self,
        request_id: str,
        values: dict[str, Any],
        outcome: Outcome,
        queue: str | None,
        work: Work | None,
        *conditions: Any,
    ) -> bool:
        size = len(outcome.payload) if outcome.error is None else None
        usage = None if work is None else work.usage
        if work is not None:
            values |= {"started_at": work.started_at, "computed_at": work.computed_at}
        if usage is not None:
            values["quantities"] = {kind.value: quantity for kind, quantity in usage.quantities.items()}
        async with self._database.write() as connection:
            now = datetime.now(UTC)
            statement = self._end.where(*conditions) if conditions else self._end
            ending = {"id": request_id, "finished_at": now, **values}
            promise = (await connection.execute(statement, ending)).one_or_none()
            if promise is not None and usage is not None:
                await self._usage.add(connection, promise.owner, usage, now)
            if promise is not None and queue is not None:
                completion = Completion(request_id, size)
                await self.completions.append(connection, queue, promise.owner, completion)
        if promise is None:
            return False
        if work is not None:
            self._metrics.observe(promise.kind, promise.created_at, work, datetime.now(UTC))
        self._notifier.publish(request_id, replace(outcome, kind=PromiseKind(promise.kind)))
        self.notices.send(Topic.PROMISE, request_id)
        if queue is not None:
            self.completions.announce(queue)
        return True

    async def _read(self, request_id: str, owner: str) -> Any:
        async with self._database.read() as connection:
            row = (await connection.execute(self._select, {"id": request_id})).one_or_none()
        if row is None or row.owner != owner:
            raise PromiseLost(
                f"no promise {request_id}: it expired, or was never made; submit the request again"
            )
        return row

    async def _outcome(self, row: Any) -> Outcome:
        if row.state != "done":
            return Outcome(error=row.error, category=row.category)
        payload = row.payload
        if row.payload_in_blob:
            payload = await asyncio.to_thread(self._blobs.get, payload_key(row.request_id))
        if payload is None:
            raise PromiseLost(f"the result of {row.request_id} is gone; submit the request again")
        return Outcome(payload, row.media_type, kind=PromiseKind(row.kind))

    def _recheck_s(self, row: Any) -> float:
        told = self.notices.live or (row.service == self._service and row.holder == self.holder)
        return _RECHECK_S if told else _RECHECK_UNTOLD_S

    def _forget_blobs(self, request_id: str) -> None:
        self._blobs.delete(request_key(request_id))
        self._blobs.delete(payload_key(request_id))


def _failure(message: str, category: Category, state: str = "failed") -> tuple[dict[str, Any], Outcome]:
    # A message may quote what the client sent; a promise must end all the same.
    message = "".join(
        "\N{REPLACEMENT CHARACTER}" if char == "\0" or "\ud800" <= char <= "\udfff" else char
        for char in message
    )
    values = {"state": state, "error": message, "category": category}
    return values, Outcome(error=message, category=category)


def _column(attribute: Any) -> Any:
    """The column behind a mapped attribute (which SQLModel types as its value)."""
    return attribute.property.columns[0]


def _row(request_id: Any) -> Any:
    return _column(PromiseRow.request_id) == request_id
