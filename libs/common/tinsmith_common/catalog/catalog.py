"""The repositories of the catalog."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, or_

from tinsmith_common.catalog.records import (
    CheckpointRecord,
    CustomLossRecord,
    Page,
    RunRecord,
    SamplingSessionRecord,
    SessionRecord,
)
from tinsmith_common.catalog.repository import Repository
from tinsmith_common.catalog.tables import (
    CheckpointRow,
    CustomLossRow,
    RunRow,
    SamplingCloneRow,
    SamplingSessionRow,
    SessionRow,
)
from tinsmith_common.database import Database


class Sessions(Repository[SessionRecord]):
    """Client sessions."""

    table = SessionRow
    record = SessionRecord

    async def of_owner(self, owner: str, offset: int, limit: int) -> Page[SessionRecord]:
        """The owner's sessions, newest first."""
        return await self.page(offset, limit, self._column("owner") == owner)

    async def open_and_silent_since(self, cutoff: datetime) -> tuple[SessionRecord, ...]:
        """Sessions that are not closed and were last heard of before `cutoff`."""
        return await self.select(self._column("closed_at").is_(None), self._column("last_seen_at") < cutoff)


class Runs(Repository[RunRecord]):
    """Training runs."""

    table = RunRow
    record = RunRecord

    async def of_owner(self, owner: str, offset: int, limit: int) -> Page[RunRecord]:
        """The owner's runs, newest first."""
        return await self.page(offset, limit, self._column("owner") == owner)

    async def of_session(self, session_id: str) -> tuple[RunRecord, ...]:
        """The runs of one session, oldest first."""
        return await self.select(self._column("session_id") == session_id)


class Checkpoints(Repository[CheckpointRecord]):
    """Checkpoints that have not expired. An expired one is not seen by any query, only by `expired`."""

    table = CheckpointRow
    key = "path"
    record = CheckpointRecord

    async def find(self, path: str) -> CheckpointRecord | None:
        """The live checkpoint of that path, whoever owns it."""
        found = await self.select(self._column("path") == path, self._live())
        return found[0] if found else None

    async def of_owner(self, owner: str, offset: int, limit: int) -> Page[CheckpointRecord]:
        """The owner's live checkpoints, newest first."""
        return await self.page(offset, limit, self._column("owner") == owner, self._live())

    async def of_run(self, run_id: str) -> tuple[CheckpointRecord, ...]:
        """The run's live checkpoints, oldest first."""
        return await self.select(self._column("run_id") == run_id, self._live())

    async def expired(self) -> tuple[CheckpointRecord, ...]:
        """What is past its time and can be removed."""
        return await self.select(self._column("expires_at") <= datetime.now(UTC))

    def _live(self) -> ColumnElement[bool]:
        expires_at: Any = self._column("expires_at")
        return or_(expires_at.is_(None), expires_at > datetime.now(UTC))


class SamplingSessions(Repository[SamplingSessionRecord]):
    """Sampling sessions."""

    table = SamplingSessionRow
    record = SamplingSessionRecord

    async def of_session(self, session_id: str) -> tuple[SamplingSessionRecord, ...]:
        """The sampling sessions of one client session, oldest first."""
        return await self.select(self._column("session_id") == session_id)

    async def next_clone(self, sampling_session_id: str) -> int:
        """1, 2, 3 … for the clients that join a session; no number is given twice."""
        statement = self._database.next_number(SamplingCloneRow, sampling_session_id)
        async with self._database.write() as connection:
            return (await connection.execute(statement)).scalar_one()


class CustomLosses(Repository[CustomLossRecord]):
    """Losses that clients uploaded."""

    table = CustomLossRow
    record = CustomLossRecord


class Catalog:
    """Everything that exists, by kind."""

    def __init__(self, database: Database) -> None:
        self.sessions = Sessions(database)
        self.runs = Runs(database)
        self.checkpoints = Checkpoints(database)
        self.sampling_sessions = SamplingSessions(database)
        self.custom_losses = CustomLosses(database)
