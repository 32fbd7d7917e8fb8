"""What every catalog repository does: rows in, records out."""

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, bindparam, delete, func, select, update
from sqlmodel import SQLModel

from tinsmith_common.catalog.records import Page
from tinsmith_common.database import Database, core

R = TypeVar("R")


class Repository(Generic[R]):
    """Access to one table whose columns equal the fields of one frozen record class."""

    table: ClassVar[type[SQLModel]]
    key: ClassVar[str] = "id"
    record: Callable[..., R]

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, record: R) -> bool:
        """Insert the record unless its key is there already. Returns whether it was inserted."""
        values: dict[str, Any] = asdict(record)  # pyright: ignore[reportArgumentType]  (R is a dataclass)
        statement = self._database.insert_if_absent(self.table, values, self.key)
        async with self._database.write() as connection:
            return (await connection.execute(statement)).rowcount == 1

    async def get(self, key: str) -> R | None:
        """The record of that key, whoever owns it."""
        async with self._database.read() as connection:
            row = (await connection.execute(self._by_key, {"key": key})).one_or_none()
        return None if row is None else self._to_record(row)

    async def update(self, key: str, **values: Any) -> None:
        """Set columns of one row; unknown keys are ignored."""
        async with self._database.write() as connection:
            await connection.execute(update(self.table).where(self._column(self.key) == key).values(**values))

    async def delete(self, key: str) -> bool:
        """Remove one row. Returns whether it was there."""
        async with self._database.write() as connection:
            statement = delete(self.table).where(self._column(self.key) == key)
            return (await connection.execute(statement)).rowcount == 1

    async def select(self, *where: ColumnElement[bool]) -> tuple[R, ...]:
        """All records that match, oldest first."""
        query = select(self.table).where(*where).order_by(self._column("created_at"))
        async with self._database.read() as connection:
            return tuple(self._to_record(row) for row in (await connection.execute(query)).all())

    async def page(self, offset: int, limit: int, *where: ColumnElement[bool]) -> Page[R]:
        """A slice of what matches, newest first, with the exact total."""
        count = select(func.count()).select_from(self.table).where(*where)
        newest = (self._column("created_at").desc(), self._column(self.key))
        query = select(self.table).where(*where).order_by(*newest).offset(offset).limit(limit)
        async with self._database.read() as connection:
            total = (await connection.execute(count)).scalar_one()
            rows = (await connection.execute(query)).all()
        return Page(tuple(self._to_record(row) for row in rows), offset, limit, total)

    @cached_property
    def _by_key(self) -> Any:
        return select(core(self.table)).where(core(self.table).c[self.key] == bindparam("key"))

    def _column(self, name: str) -> Any:
        return getattr(self.table, name)

    def _to_record(self, row: Any) -> R:
        names = (field.name for field in fields(self.record))  # pyright: ignore[reportArgumentType]
        values = {name: getattr(row, name) for name in names}
        return self.record(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
