"""The repositories of the catalog."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, true, update

from tinsmith_common.catalog.records import (
    AuditRecord,
    CheckpointRecord,
    CustomLossRecord,
    InflightRecord,
    Page,
    RunRecord,
    SamplingSessionRecord,
    SessionRecord,
    Storage,
    Usage,
    UsageKind,
)
from tinsmith_common.catalog.repository import Repository
from tinsmith_common.catalog.search import SessionQuery
from tinsmith_common.catalog.tables import (
    AuditRow,
    CheckpointRow,
    CustomLossRow,
    InflightRow,
    RunRow,
    SamplingCloneRow,
    SamplingSessionRow,
    SessionRow,
)
from tinsmith_common.catalog.usage import UsageLedger
from tinsmith_common.checkpoints.paths import CheckpointKind
from tinsmith_common.database import Database

# Columns, as SQLAlchemy types them.
_RUNS: Any = RunRow
_SESSIONS: Any = SessionRow
_CHECKPOINTS: Any = CheckpointRow

_IDS_PER_QUERY = 500


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

    async def by_id(self, session_ids: Sequence[str]) -> dict[str, SessionRecord]:
        """These sessions by their id, as far as they are known."""
        found: dict[str, SessionRecord] = {}
        for begin in range(0, len(session_ids), _IDS_PER_QUERY):
            some = session_ids[begin : begin + _IDS_PER_QUERY]
            found |= {session.id: session for session in await self.select(self._column("id").in_(some))}
        return found

    async def fail(self, session_id: str, failure: Mapping[str, Any]) -> None:
        """Note what made an open session fail; the first failure stays."""
        first = (self._column("id") == session_id, self._column("failure").is_(None))
        still_open = self._column("closed_at").is_(None)
        async with self._database.write() as connection:
            statement = update(self.table).where(*first, still_open).values(failure=dict(failure))
            await connection.execute(statement)

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

    async def newest(self, owner: str | None, limit: int) -> Page[RunRecord]:
        """The owner's newest runs, or with None everybody's."""
        return await self.page(0, limit, *([] if owner is None else [self._column("owner") == owner]))

    async def of_session(self, session_id: str) -> tuple[RunRecord, ...]:
        """The runs of one session, oldest first."""
        return await self.select(self._column("session_id") == session_id)

    async def trainable(self) -> tuple[RunRecord, ...]:
        """The runs of open sessions that are whole and no copies, oldest first."""
        open_sessions = select(_SESSIONS.id).where(_SESSIONS.closed_at.is_(None))
        return await self.select(
            self._column("session_id").in_(open_sessions),
            self._column("corrupted").is_(False),
            self._column("copied_from").is_(None),
        )


class Checkpoints(Repository[CheckpointRecord]):
    """Checkpoints that have not expired. An expired one is not seen by any query, only by `expired`."""

    table = CheckpointRow
    key = "path"
    record = CheckpointRecord

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._usage = UsageLedger(database)

    async def save(self, checkpoint: CheckpointRecord, session_id: str) -> None:
        """Insert a checkpoint made in that session, replacing one of the same path. It is counted and, from now
        on, its storage too."""
        usage = Usage(session_id, checkpoint.base_model, {UsageKind.CHECKPOINT: 1})
        async with self._database.write() as connection:
            await connection.execute(delete(self.table).where(_CHECKPOINTS.path == checkpoint.path))
            await self._usage.end_storage(connection, checkpoint.path, checkpoint.created_at)
            await connection.execute(insert(self.table).values(asdict(checkpoint)))
            await self._usage.begin_storage(connection, checkpoint, session_id)
            await self._usage.add(connection, checkpoint.owner, usage, checkpoint.created_at)

    async def delete(self, key: str) -> bool:
        """Remove a checkpoint, whose storage is counted up to now, or to its expiry if that was before."""
        statement = delete(self.table).where(_CHECKPOINTS.path == key).returning(_CHECKPOINTS.expires_at)
        now = datetime.now(UTC)
        async with self._database.write() as connection:
            removed = (await connection.execute(statement)).one_or_none()
            await self._usage.end_storage(connection, key, min(now, removed[0] or now) if removed else now)
        return removed is not None

    async def find(self, path: str) -> CheckpointRecord | None:
        """The live checkpoint of that path, whoever owns it."""
        found = await self.select(self._column("path") == path, self._live())
        return found[0] if found else None

    async def of_owner(
        self, owner: str, offset: int, limit: int, *, exports: bool = True
    ) -> Page[CheckpointRecord]:
        """The owner's live checkpoints, newest first, with or without exports."""
        wanted = true() if exports else self._column("kind") != CheckpointKind.EXTERNAL.value
        return await self.page(offset, limit, self._column("owner") == owner, self._live(), wanted)

    async def sampler_weights_of(self, owner: str) -> tuple[CheckpointRecord, ...]:
        """The owner's live sampler weights, newest first."""
        found = await self.select(
            self._column("owner") == owner,
            self._column("kind") == CheckpointKind.SAMPLER.value,
            self._live(),
        )
        return found[::-1]

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


class Inflight(Repository[InflightRecord]):
    """Which weights the inflight sampling sessions of each run serve."""

    table = InflightRow
    record = InflightRecord

    async def put(self, record: InflightRecord) -> None:
        """Point the run at other weights."""
        async with self._database.write() as connection:
            await connection.execute(delete(self.table).where(self._column("id") == record.id))
            await connection.execute(insert(self.table).values(asdict(record)))


class CustomLosses(Repository[CustomLossRecord]):
    """Losses that clients uploaded."""

    table = CustomLossRow
    record = CustomLossRecord

    async def delete_of_closed_sessions(self) -> int:
        """Remove the losses of sessions that have ended. Returns how many."""
        ended = select(_SESSIONS.id).where(_SESSIONS.closed_at.is_not(None))
        async with self._database.write() as connection:
            statement = delete(self.table).where(self._column("session_id").in_(ended))
            return (await connection.execute(statement)).rowcount


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
        self.inflight = Inflight(database)
        self.custom_losses = CustomLosses(database)
        self.audit = Audit(database)
        self.usage = UsageLedger(database)


def _live(table: Any) -> ColumnElement[bool]:
    return or_(table.expires_at.is_(None), table.expires_at > datetime.now(UTC))
