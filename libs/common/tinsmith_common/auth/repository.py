"""API keys in the store."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update

from tinsmith_common.auth.tables import ApiKeyRow
from tinsmith_common.database import Database

_ROWS: Any = ApiKeyRow


@dataclass(frozen=True)
class ApiKey:
    """A key of `owner`'s, without its secret. Times are UTC."""

    id: int
    owner: str
    name: str
    note: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class ApiKeys:
    """The keys of all accounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, digest: str, owner: str, name: str, note: str) -> int:
        """Record a new key and answer its id."""
        row = ApiKeyRow(digest=digest, owner=owner, name=name, note=note, created_at=datetime.now(UTC))
        statement = insert(ApiKeyRow).values(row.model_dump(exclude={"id"})).returning(_ROWS.id)
        async with self._database.write() as connection:
            return (await connection.execute(statement)).scalar_one()

    async def find(self, key: str | int) -> ApiKey | None:
        """A key by its digest, or by its id."""
        where = _ROWS.id == key if isinstance(key, int) else _ROWS.digest == key
        async with self._database.read() as connection:
            row = (await connection.execute(select(ApiKeyRow).where(where))).one_or_none()
        return None if row is None else _to_key(row)

    async def all(self) -> tuple[ApiKey, ...]:
        """Every key, oldest first."""
        async with self._database.read() as connection:
            rows = (await connection.execute(select(ApiKeyRow).order_by(_ROWS.id))).all()
        return tuple(map(_to_key, rows))

    async def revoke(self, key_id: int) -> bool:
        """End a key for good. Returns whether it was alive."""
        return await self._set(key_id, "revoked_at", _ROWS.revoked_at.is_(None))

    async def note_use(self, key_id: int) -> None:
        """Remember that a key is being used now."""
        await self._set(key_id, "last_used_at")

    async def _set(self, key_id: int, column: str, *where: Any) -> bool:
        statement = update(ApiKeyRow).where(_ROWS.id == key_id, *where).values({column: datetime.now(UTC)})
        async with self._database.write() as connection:
            return (await connection.execute(statement)).rowcount == 1


def _to_key(row: Any) -> ApiKey:
    return ApiKey(row.id, row.owner, row.name, row.note, row.created_at, row.last_used_at, row.revoked_at)
