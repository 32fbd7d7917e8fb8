"""The repositories of the catalog."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update

from tinsmith_common.catalog.records import (
    AuditRecord,
    CheckpointRecord,
    CopyRecord,
    CustomLossRecord,
    Page,
    RunRecord,
    SamplingSessionRecord,
    SessionRecord,
    Storage,
)
from tinsmith_common.catalog.repository import Repository
from tinsmith_common.catalog.search import SessionQuery
from tinsmith_common.catalog.tables import (
    AuditRow,
    CheckpointRow,
    CopyRow,
    CustomLossRow,
    RunRow,
    SamplingCloneRow,
    SamplingSessionRow,
    SessionRow,
)
from tinsmith_common.database import Database

# Columns, as SQLAlchemy types them.
_RUNS: Any = RunRow
_SESSIONS: Any = SessionRow


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

    async def search(self, query: SessionQuery, limit: int) -> tuple[SessionRecord, ...]:
        """What matches, newest first, up to `limit`."""
        newest = (self._column("created_at").desc(), self._column("id").desc())
        statement = select(self.table).where(*query.conditions()).order_by(*newest).limit(limit)
        async with self._database.read() as connection:
            return tuple(self._to_record(row) for row in (await connection.execute(statement)).all())


class Runs(Repository[RunRecord]):
    """Training runs."""

    table = RunRow
    record = RunRecord

    async def visible_to(
        self, owner: str, offset: int, limit: int, *, accessible: bool = False, project_id: str | None = None
    ) -> Page[RunRecord]:
        """The owner's runs, newest first. `accessible` adds those of others that have a public checkpoint."""
        where: ColumnElement[bool] = self._column("owner") == owner
        if accessible:
            rows: Any = CheckpointRow
            public = select(rows.run_id).where(rows.public, _live(rows))
            where = or_(where, self._column("id").in_(public))
        if project_id is None:
            return await self.page(offset, limit, where)
        sessions: Any = SessionRow
        in_project = select(sessions.id).where(sessions.project_id == project_id)
        return await self.page(offset, limit, where, self._column("session_id").in_(in_project))

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

    async def storage_by_session(self, session_ids: Sequence[str]) -> dict[str, Storage]:
        """What the live checkpoints of each of these sessions take up; those without any are left out."""
        return await self._storage_by(_RUNS.session_id, _RUNS.session_id.in_(session_ids))

    async def storage_by_project(self, owner: str) -> dict[str | None, Storage]:
        """What the owner's live checkpoints take up, by the project of their session."""
        return await self._storage_by(_SESSIONS.project_id, self._column("owner") == owner)

    async def _storage_by(self, group: Any, where: ColumnElement[bool]) -> dict[Any, Storage]:
        size = func.coalesce(func.sum(self._column("size_bytes")), 0)
        query = (
            select(group, func.count(), size)
            .select_from(self.table)
            .join(RunRow, _RUNS.id == self._column("run_id"))
            .join(SessionRow, _SESSIONS.id == _RUNS.session_id)
            .where(where, self._live())
            .group_by(group)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return {key: Storage(int(count), int(total)) for key, count, total in rows}

    async def set_public(self, path: str, public: bool) -> bool:
        """Publish or withdraw a checkpoint. Returns whether that changed anything."""
        changes = (self._column("path") == path, self._column("public") != public)
        async with self._database.write() as connection:
            statement = update(self.table).where(*changes).values(public=public)
            return (await connection.execute(statement)).rowcount == 1

    def _live(self) -> ColumnElement[bool]:
        return _live(self.table)


class SamplingSessions(Repository[SamplingSessionRecord]):
    """Sampling sessions."""

    table = SamplingSessionRow
    record = SamplingSessionRecord

    async def of_session(self, session_id: str) -> tuple[SamplingSessionRecord, ...]:
        """The sampling sessions of one client session, oldest first."""
        return await self.select(self._column("session_id") == session_id)

    async def next_clone(self, sampling_session_id: str) -> int:
        """1, 2, 3 … for the clients that join a session; no number is given twice."""
        statement = self._database.next_number(SamplingCloneRow)
        values = {"name": sampling_session_id, "at_least": 1}
        async with self._database.write() as connection:
            return (await connection.execute(statement, values)).scalar_one()


class CustomLosses(Repository[CustomLossRecord]):
    """Losses that clients uploaded."""

    table = CustomLossRow
    record = CustomLossRecord


class Copies(Repository[CopyRecord]):
    """Runs that hold copies."""

    table = CopyRow
    record = CopyRecord


class Audit(Repository[AuditRecord]):
    """What accounts changed or took away."""

    table = AuditRow
    record = AuditRecord

    async def of_owner(self, owner: str, start: datetime, end: datetime) -> tuple[AuditRecord, ...]:
        """The owner's entries from `start` until before `end`, oldest first."""
        at = self._column("created_at")
        return await self.select(self._column("owner") == owner, at >= start, at < end)


class Catalog:
    """Everything that exists, by kind."""

    def __init__(self, database: Database) -> None:
        self.sessions = Sessions(database)
        self.runs = Runs(database)
        self.checkpoints = Checkpoints(database)
        self.sampling_sessions = SamplingSessions(database)
        self.custom_losses = CustomLosses(database)
        self.copies = Copies(database)
        self.audit = Audit(database)


def _live(table: Any) -> ColumnElement[bool]:
    return or_(table.expires_at.is_(None), table.expires_at > datetime.now(UTC))
