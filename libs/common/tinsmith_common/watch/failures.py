"""What failed lately."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from tinsmith_common.database import Database
from tinsmith_common.futures.tables import PromiseRow
from tinsmith_common.futures.types import Service

_PROMISES: Any = PromiseRow


@dataclass(frozen=True)
class Failure:
    """A promise that ended with an error. `category` says who can mend it."""

    request_id: str
    session_id: str
    kind: str
    owner: str
    at: datetime
    error: str
    category: str


class RecentFailures:
    """Promises of one service that failed and are not forgotten yet."""

    def __init__(self, database: Database, service: Service) -> None:
        self._database = database
        self._service = service

    async def newest(self, owner: str | None, limit: int) -> tuple[Failure, ...]:
        """The owner's, or with None everybody's, newest first. What was cancelled has not failed."""
        columns = ("request_id", "session_id", "kind", "owner", "finished_at", "error", "category")
        query = select(*(getattr(_PROMISES, name) for name in columns)).where(
            _PROMISES.state == "failed", _PROMISES.service == self._service
        )
        if owner is not None:
            query = query.where(_PROMISES.owner == owner)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(_PROMISES.finished_at.desc()).limit(limit))).all()
        return tuple(
            Failure(
                row.request_id,
                row.session_id,
                row.kind,
                row.owner,
                row.finished_at,
                row.error or "",
                row.category or "unknown",
            )
            for row in rows
        )
