"""What happened to every request, and when: the source of trace exports."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from tinsmith_common.catalog.records import Span
from tinsmith_common.catalog.tables import SpanRow
from tinsmith_common.database import Database

_SPANS: Any = SpanRow
_PAGE = 2000


class Spans:
    """One span per request that ended, for as long as they are kept.

    Anybody can name a session in a request, so every question is about the spans of one owner.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, connection: AsyncConnection, span: Span) -> None:
        """Record a span in the caller's transaction. A request that was ended before keeps its first."""
        await connection.execute(self._database.insert_if_absent(SpanRow, asdict(span), "request_id"))

    async def pages(self, owner: str, session_id: str) -> AsyncIterator[tuple[Span, ...]]:
        """The spans of a session in the order of their arrival, some thousand at a time."""
        after: tuple[datetime, str] | None = None
        while page := await self._page(owner, session_id, after):
            yield page
            after = page[-1].received_at, page[-1].request_id

    async def last(self, owner: str, session_id: str) -> Span | None:
        """What ended last in a session."""
        query = (
            select(SpanRow)
            .where(*_of(owner, session_id))
            .order_by(_SPANS.stored_at.desc(), _SPANS.request_id.desc())
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _to_span(row)

    async def any_done(self, owner: str, session_id: str, subject: str) -> bool:
        """Whether any request to that model or sampler of the session ended well."""
        query = (
            select(_SPANS.request_id)
            .where(
                *_of(owner, session_id),
                _SPANS.state == "done",
                _SPANS.request_id.startswith(f"{subject}:", autoescape=True),
            )
            .limit(1)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def expire(self, before: datetime) -> None:
        """Forget what ended before that time."""
        async with self._database.write() as connection:
            await connection.execute(delete(SpanRow).where(_SPANS.stored_at < before))

    async def _page(
        self, owner: str, session_id: str, after: tuple[datetime, str] | None
    ) -> tuple[Span, ...]:
        query = select(SpanRow).where(*_of(owner, session_id))
        if after is not None:
            at, request_id = after
            query = query.where(
                or_(
                    _SPANS.received_at > at,
                    and_(_SPANS.received_at == at, _SPANS.request_id > request_id),
                )
            )
        query = query.order_by(_SPANS.received_at, _SPANS.request_id).limit(_PAGE)
        async with self._database.read() as connection:
            return tuple(_to_span(row) for row in (await connection.execute(query)).all())


def _of(owner: str, session_id: str) -> tuple[Any, Any]:
    return _SPANS.session_id == session_id, _SPANS.owner == owner


def _to_span(row: Any) -> Span:
    return Span(
        request_id=row.request_id,
        session_id=row.session_id,
        owner=row.owner,
        kind=row.kind,
        state=row.state,
        received_at=row.received_at,
        started_at=row.started_at,
        computed_at=row.computed_at,
        stored_at=row.stored_at,
        error=row.error,
        category=row.category,
        quantities=row.quantities,
    )
