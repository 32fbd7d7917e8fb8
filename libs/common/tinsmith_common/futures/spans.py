"""What happened to every request, and when.

Promises hold it themselves, so that recording costs no statement of its own; a promise that is forgotten leaves it
in a table without bodies, where it stays longer.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from tinsmith_common.database import Database
from tinsmith_common.futures.tables import PromiseRow, SpanRow
from tinsmith_common.futures.types import PromiseKind, Span

_PAGE = 2000

# Columns, as SQLAlchemy types them.
_PROMISES: Any = PromiseRow
_SPANS: Any = SpanRow


class Spans:
    """Spans by session. Anybody can name a session in a request, so every question is about those of one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pages(self, owner: str, session_id: str) -> AsyncIterator[tuple[Span, ...]]:
        """The spans of a session in the order of their arrival, some thousand at a time."""
        after: Span | None = None
        while page := await self._page(owner, session_id, after):
            yield page
            after = page[-1]

    async def last(self, owner: str, session_id: str) -> Span | None:
        """What ended last in a session."""
        spans = _of(owner, session_id).c
        query = select(spans).where(spans.state != "pending").order_by(spans.finished_at.desc()).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _to_span(row)

    async def any_done(self, owner: str, session_id: str, subject: str) -> bool:
        """Whether any request to that model or sampler of the session ended well."""
        spans = _of(owner, session_id).c
        its_own = spans.request_id.startswith(f"{subject}:", autoescape=True)
        query = select(spans.request_id).where(spans.state == "done", its_own).limit(1)
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def keep(self, connection: AsyncConnection, forgotten: Any) -> None:
        """Take over the spans of the promises that match, in the caller's transaction."""
        names = list(SpanRow.model_fields)
        rows = select(*_columns(_PROMISES)).where(forgotten)
        # A request id that was given twice keeps its first span.
        await connection.execute(self._database.copy_if_absent(SpanRow, names, rows, "request_id"))

    async def expire(self, before: datetime) -> None:
        """Forget what ended before that time, as far as its promise is forgotten too."""
        async with self._database.write() as connection:
            await connection.execute(delete(SpanRow).where(_SPANS.finished_at < before))

    async def _page(self, owner: str, session_id: str, after: Span | None) -> tuple[Span, ...]:
        spans = _of(owner, session_id).c
        query = select(spans)
        if after is not None:
            at, request_id = after.received_at, after.request_id
            same_time = and_(spans.created_at == at, spans.request_id > request_id)
            query = query.where(or_(spans.created_at > at, same_time))
        query = query.order_by(spans.created_at, spans.request_id).limit(_PAGE)
        async with self._database.read() as connection:
            return tuple(_to_span(row) for row in (await connection.execute(query)).all())


def _of(owner: str, session_id: str) -> Any:
    """The spans of both tables."""

    def of(table: Any) -> Any:
        return select(*_columns(table)).where(table.session_id == session_id, table.owner == owner)

    return union_all(of(_PROMISES), of(_SPANS)).subquery()


def _columns(table: Any) -> list[Any]:
    return [getattr(table, name) for name in SpanRow.model_fields]


def _to_span(row: Any) -> Span:
    return Span(
        request_id=row.request_id,
        kind=PromiseKind(row.kind),
        state=row.state,
        received_at=row.created_at,
        started_at=row.started_at,
        computed_at=row.computed_at,
        stored_at=row.finished_at,
        error=row.error,
        category=row.category,
        quantities=row.quantities or {},
    )
