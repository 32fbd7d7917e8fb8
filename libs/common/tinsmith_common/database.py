"""The one relational store behind futures and catalog: SQLite (WAL) by default, Postgres by URL."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, case, event, inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlmodel import SQLModel

from tinsmith_common.sqlite import connect

# A writer in another process holds the file for milliseconds; this only ends when one of them is stuck.
_SQLITE_BUSY_TIMEOUT_MS = 30_000


class Database:
    """Connections to the shared store.

    `read()` and `write()` are transactions. SQLite lets one writer in at a time and answers the others by
    sleeping in steps of up to 100 ms, so writers of this process queue on a lock instead.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        if self._is_sqlite and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        driver = {"async_creator_fn": connect} if self._is_sqlite else {}
        self._engine = create_async_engine(
            self._url, pool_size=8, max_overflow=8, pool_timeout=60, connect_args=driver
        )
        self._write_lock = asyncio.Lock() if self._is_sqlite else None
        if self._is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)

    async def create_tables(self) -> None:
        """Create what is missing. Two services may do so at the same time."""
        for attempt in range(5):
            try:
                async with self.write() as connection:
                    await connection.run_sync(SQLModel.metadata.create_all)
                return
            except Exception:
                # "table already exists": the other service was between our look and our creation.
                if attempt == 4:
                    raise
                await asyncio.sleep(0.2 * (attempt + 1))

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection, None]:
        """A connection for queries."""
        async with self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection, None]:
        """A transaction, committed on leaving."""
        async with self._write_lock or nullcontext(), self._engine.begin() as connection:
            yield connection

    def insert_if_absent(self, table: type[SQLModel], values: dict[str, Any] | None, *key: str) -> Any:
        """`INSERT … ON CONFLICT (key) DO NOTHING`, in the dialect of this store.

        With `values` None the statement can be kept, and executed with the values of each row.
        """
        dialect = sqlite if self._is_sqlite else postgresql
        statement = dialect.insert(core(table)).on_conflict_do_nothing(index_elements=list(key))
        return statement if values is None else statement.values(values)

    def next_number(self, table: type[SQLModel]) -> Any:
        """A statement that counts a row of a (name, number) table on, or begins it, and returns the number.

        Execute it with `name` and `at_least`: the number is one more than the last, or `at_least` if that is more.
        """
        dialect = sqlite if self._is_sqlite else postgresql
        key, last = core(table).columns
        at_least = bindparam("at_least", type_=last.type)
        return (
            dialect.insert(core(table))
            .values({key.name: bindparam("name"), last.name: at_least})
            .on_conflict_do_update(
                index_elements=[key.name],
                set_={last.name: case((last < at_least, at_least), else_=last + 1)},
            )
            .returning(last)
        )

    async def close(self) -> None:
        """Give back all connections."""
        await self._engine.dispose()


def core(table: type[SQLModel]) -> Any:
    """The bare table of a mapped class: statements on it skip the ORM, which took a third of the time of each."""
    return inspect(table).local_table


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # WAL with NORMAL survives the death of a process; only a power cut can take the last commits.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA busy_timeout={_SQLITE_BUSY_TIMEOUT_MS}")
    cursor.close()
