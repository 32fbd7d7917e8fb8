"""What was used, and by whom: sums by UTC hour, and how long each checkpoint was stored.

Everything is added in the transaction that makes it true (a result stored, a checkpoint listed), so that a
process which dies has counted exactly what its clients can see.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from tinsmith_common.catalog.records import CheckpointRecord, StoredCheckpoint, Usage, UsageHour, UsageKind
from tinsmith_common.catalog.tables import StoredRow, UsageRow
from tinsmith_common.database import Database

# Columns, as SQLAlchemy types them.
_HOURS: Any = UsageRow
_STORED: Any = StoredRow


class UsageLedger:
    """The figures behind a bill. Methods with a connection join the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._add = database.insert_or_add(UsageRow, "quantity")

    async def add(self, connection: AsyncConnection, owner: str, usage: Usage, at: datetime) -> None:
        """Count a usage in its hour."""
        address = {"owner": owner, "hour": start_of_hour(at)} | {
            "session_id": usage.session_id,
            "base_model": usage.base_model,
        }
        # Always in the same order: two writers that add to the same rows must not wait for each other.
        rows = [
            {**address, "kind": kind.value, "quantity": quantity}
            for kind, quantity in sorted(usage.quantities.items())
            if quantity
        ]
        if rows:
            await connection.execute(self._add, rows)

    async def count(self, owner: str, usage: Usage) -> None:
        """Count, in a transaction of its own, what leaves nothing else behind."""
        async with self._database.write() as connection:
            await self.add(connection, owner, usage, datetime.now(UTC))

    async def hours(self, owner: str, start: datetime, end: datetime) -> tuple[UsageHour, ...]:
        """What the owner used in the hours from `start` until before `end`, oldest first."""
        query = (
            select(UsageRow)
            .where(_HOURS.owner == owner, _HOURS.hour >= start, _HOURS.hour < end)
            .order_by(_HOURS.hour)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return tuple(
            UsageHour(row.owner, row.hour, row.session_id, row.base_model, UsageKind(row.kind), row.quantity)
            for row in rows
        )

    async def begin_storage(
        self, connection: AsyncConnection, checkpoint: CheckpointRecord, session_id: str
    ) -> None:
        """Note that a checkpoint is stored from its creation on."""
        row = StoredRow(
            id=uuid.uuid4().hex,
            path=checkpoint.path,
            owner=checkpoint.owner,
            session_id=session_id,
            base_model=checkpoint.base_model,
            size_bytes=checkpoint.size_bytes,
            started_at=checkpoint.created_at,
        )
        await connection.execute(insert(StoredRow).values(row.model_dump()))

    async def end_storage(self, connection: AsyncConnection, path: str, at: datetime) -> None:
        """Note that what is stored under that path is gone since `at`."""
        current = (_STORED.path == path, _STORED.ended_at.is_(None))
        await connection.execute(update(StoredRow).where(*current).values(ended_at=at))

    async def stored(self, owner: str, start: datetime, end: datetime) -> tuple[StoredCheckpoint, ...]:
        """What of the owner's was stored at any time from `start` until before `end`."""
        there = (_STORED.started_at < end, or_(_STORED.ended_at.is_(None), _STORED.ended_at > start))
        query = select(StoredRow).where(_STORED.owner == owner, *there)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return tuple(
            StoredCheckpoint(row.session_id, row.base_model, row.size_bytes, row.started_at, row.ended_at)
            for row in rows
        )


def start_of_hour(at: datetime) -> datetime:
    """The beginning of the hour that `at` is in."""
    return at.replace(minute=0, second=0, microsecond=0)
