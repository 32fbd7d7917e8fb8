"""Finding sessions by what is known of them."""

from tinsmith_common.catalog import Catalog, SessionQuery, SessionRecord, Storage
from tinsmith_common.wire.search import (
    ActiveStatus,
    ClientFinishedStatus,
    FailedStatus,
    SearchCursor,
    SearchSessionsRequest,
    SearchSessionsResponse,
    SessionStatus,
    SessionSummary,
)
from tinsmith_common.wire.sessions import FinishReason

NO_PROJECT = "default"
"""The project of a session that named none."""


class SessionSearch:
    """Sessions are never shared, so every search is among the caller's own."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def search(self, owner: str, body: SearchSessionsRequest) -> SearchSessionsResponse:
        """A page of matches, newest first, with what their checkpoints take up."""
        if body.owner.type == "user" and owner not in body.owner.owner_urns:
            return SearchSessionsResponse(sessions=[])
        found = await self._catalog.sessions.search(_query(owner, body), body.limit + 1)
        page = found[: body.limit]
        storage = await self._catalog.checkpoints.storage_by_session([session.id for session in page])
        more = len(found) > len(page)
        cursor = (
            SearchCursor(last_created_at=page[-1].created_at, last_session_id=page[-1].id) if more else None
        )
        return SearchSessionsResponse(
            sessions=[_summary(session, storage.get(session.id, Storage(0, 0))) for session in page],
            next_cursor=cursor,
        )


def _query(owner: str, body: SearchSessionsRequest) -> SessionQuery:
    projects = body.project_ids
    return SessionQuery(
        owner=owner,
        session_id=body.session_id,
        name_words=() if body.display_name is None else tuple(body.display_name.split()),
        projects=None if projects is None else tuple(None if p == NO_PROJECT else p for p in projects),
        user_metadata=body.user_metadata,
        statuses=None
        if body.statuses is None
        else tuple((status.type, tuple(status.reasons or ())) for status in body.statuses),
        after=None if body.cursor is None else (body.cursor.last_created_at, body.cursor.last_session_id),
    )


def _summary(session: SessionRecord, storage: Storage) -> SessionSummary:
    return SessionSummary(
        session_id=session.id,
        created_at=session.created_at,
        owner=session.owner,
        project_id=session.project_id or NO_PROJECT,
        checkpoints_count=storage.count,
        checkpoint_storage_bytes=storage.size_bytes,
        status=_status(session),
        display_name=session.display_name,
        user_metadata=None
        if session.user_metadata is None
        else {key: str(value) for key, value in session.user_metadata.items()},
    )


def _status(session: SessionRecord) -> SessionStatus | None:
    """Its client's own word first; none for a session that just fell silent."""
    if session.finish_reason is not None:
        reason = FinishReason.model_validate({"type": session.finish_reason})
        return ClientFinishedStatus(reason=reason, detail=session.finish_detail)
    if session.failure is not None:
        return FailedStatus.model_validate(session.failure)
    return ActiveStatus() if session.closed_at is None else None
