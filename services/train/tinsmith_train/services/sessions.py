"""Client sessions: opened, kept alive by heartbeats, finished."""

import uuid
from datetime import UTC, datetime, timedelta

from tinsmith_common.catalog import Catalog, Page, SessionRecord
from tinsmith_common.errors import NotFound
from tinsmith_common.wire.sessions import CreateSessionRequest, FinishSessionRequest, GetSessionResponse
from tinsmith_train.services.audit import AuditLog
from tinsmith_train.services.failures import SessionFailures
from tinsmith_train.services.models import ModelService


class SessionService:
    """Sessions own models: when one ends, its adapters are freed."""

    def __init__(
        self, catalog: Catalog, models: ModelService, audit: AuditLog, failures: SessionFailures
    ) -> None:
        self._catalog = catalog
        self._models = models
        self._audit = audit
        self._failures = failures

    async def create(self, owner: str, body: CreateSessionRequest) -> str:
        """Open a session and answer its id."""
        now = datetime.now(UTC)
        record = SessionRecord(
            id=str(uuid.uuid4()),
            owner=owner,
            created_at=now,
            last_seen_at=now,
            tags=tuple(body.tags),
            user_metadata=body.user_metadata,
            display_name=body.display_name,
            project_id=body.project_id,
            sdk_version=body.sdk_version,
        )
        await self._catalog.sessions.create(record)
        return record.id

    async def heartbeat(self, owner: str, session_id: str) -> None:
        """Note that the client lives."""
        await self.require(owner, session_id)
        await self._catalog.sessions.update(session_id, last_seen_at=datetime.now(UTC))

    async def finish(self, owner: str, session_id: str, body: FinishSessionRequest) -> None:
        """End a session as its client says, and free what it holds. The first reason given stays."""
        session = await self.require(owner, session_id)
        if session.finish_reason is not None:
            return
        await self._catalog.sessions.update(
            session_id, finish_reason=body.reason.type, finish_detail=body.detail
        )
        await self._close(session_id)

    async def close_silent(self, timeout: timedelta) -> int:
        """Close sessions that sent no heartbeat for `timeout`. Returns how many."""
        silent = await self._catalog.sessions.open_and_silent_since(datetime.now(UTC) - timeout)
        for session in silent:
            await self._failures.note_last_error(session)
            await self._close(session.id)
        return len(silent)

    async def assign_project(self, owner: str, session_id: str, project_id: str) -> None:
        """Move a session, and all that was made in it, to a project."""
        before = await self.require(owner, session_id)
        await self._catalog.sessions.update(session_id, project_id=project_id)
        await self._audit.note(
            owner,
            "project_session_assign",
            session_id=session_id,
            project_id=project_id,
            previous_project_id=before.project_id,
        )

    async def list_ids(self, owner: str, offset: int, limit: int) -> Page[SessionRecord]:
        """The owner's sessions, newest first."""
        return await self._catalog.sessions.of_owner(owner, offset, limit)

    async def describe(self, owner: str, session_id: str) -> GetSessionResponse:
        """A session with the ids of its runs and samplers."""
        session = await self.require(owner, session_id)
        runs = await self._catalog.runs.of_session(session_id)
        samplers = await self._catalog.sampling_sessions.of_session(session_id)
        return GetSessionResponse(
            training_run_ids=[run.id for run in runs],
            sampler_ids=[sampler.id for sampler in samplers],
            user_metadata=dict(session.user_metadata) if session.user_metadata is not None else None,
            display_name=session.display_name,
        )

    async def require(self, owner: str, session_id: str) -> SessionRecord:
        """The owner's session. Raises `NotFound`."""
        session = await self._catalog.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise NotFound(f"no session {session_id}; create one first")
        return session

    async def _close(self, session_id: str) -> None:
        await self._models.close_session(session_id)
        await self._catalog.sessions.update(session_id, closed_at=datetime.now(UTC))
