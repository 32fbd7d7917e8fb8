"""The one relational store behind futures and catalog: SQLite (WAL) by default, Postgres by URL."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, NullPool, bindparam, case, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlmodel import SQLModel

from tinsmith_common.errors import InvalidInput, StoreUnusable
from tinsmith_common.migrations import upgrade
from tinsmith_common.sqlite import connect

# A writer in another process holds the file for milliseconds; this only ends when one of them is stuck.
_SQLITE_BUSY_TIMEOUT_MS = 30_000

# The class of SQLSTATE codes for values that are wrong in themselves.
_DATA_EXCEPTION = "22"

# Alembic keeps what it works on in its modules: one migration at a time in a process, whatever its store.
_ALEMBIC = threading.Lock()


class Database:
    """Connections to the shared store.

    `read()` and `write()` are transactions. SQLite lets one writer in at a time and answers the others by
    sleeping in steps of up to 100 ms, so writers of this process queue on a lock instead. There are at most
    `connections` at a time.
    """

    def __init__(self, url: str, connections: int = 16) -> None:
        self._url = make_url(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        if self._is_sqlite and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        driver = {"async_creator_fn": connect} if self._is_sqlite else {}
        kept = (connections + 1) // 2
        self._engine = create_async_engine(
            self._url,
            pool_size=kept,
            max_overflow=connections - kept,
            pool_timeout=60,
            connect_args=driver,
        )
        self._write_lock = asyncio.Lock() if self._is_sqlite else None
        if self._is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)

    async def migrate(self) -> None:
        """Bring the store up to this version. Services may do so at the same time: one works, the others wait.

        All or nothing: an interrupted migration leaves the store as it was. Raises `StoreUnusable`.
        """
        engine = create_async_engine(self._url, poolclass=NullPool)
        if self._is_sqlite:
            event.listen(engine.sync_engine, "connect", _configure_sqlite)
            event.listen(engine.sync_engine, "begin", _begin_as_writer)
        await asyncio.to_thread(_ALEMBIC.acquire)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade)
        except (OSError, SQLAlchemyError, StoreUnusable) as error:
            raise StoreUnusable(f"cannot use the store {self.name}: {error}") from error
        finally:
            _ALEMBIC.release()
            await engine.dispose()

    @property
    def is_postgres(self) -> bool:
        """Whether this is a store on Postgres."""
        return not self._is_sqlite

    @property
    def exists(self) -> bool:
        """False for an SQLite file that nobody has made yet."""
        return not self._is_sqlite or Path(self._url.database or "").exists()

    @property
    def name(self) -> str:
        """The store's URL without its password."""
        return self._url.render_as_string(hide_password=True)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection, None]:
        """A connection for queries."""
        with _bad_values_are_bad_input():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection, None]:
        """A transaction, committed on leaving."""
        with _bad_values_are_bad_input():
            async with self._write_lock or nullcontext(), self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def postgres_connection(self) -> AsyncGenerator[Any, None]:
        """The Postgres driver's own connection, of no pool and in no transaction."""
        engine = create_async_engine(self._url, poolclass=NullPool)
        try:
            async with engine.connect() as held:
                yield (await held.get_raw_connection()).driver_connection
        finally:
            await engine.dispose()

    async def lock(self, connection: AsyncConnection, number: int) -> None:
        """Have a transaction wait for all others that lock this number. SQLite has one writer at a time anyway."""
        if not self._is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})

    def insert_if_absent(self, table: type[SQLModel], values: dict[str, Any] | None, *key: str) -> Any:
        """`INSERT … ON CONFLICT (key) DO NOTHING`, in the dialect of this store.

        With `values` None the statement can be kept, and executed with the values of each row.
        """
        dialect = sqlite if self._is_sqlite else postgresql
        statement = dialect.insert(core(table)).on_conflict_do_nothing(index_elements=list(key))
        return statement if values is None else statement.values(values)

    def copy_if_absent(self, table: type[SQLModel], names: list[str], rows: Any, *key: str) -> Any:
        """`INSERT … SELECT … ON CONFLICT (key) DO NOTHING`; `rows` is a select with a condition."""
        dialect = sqlite if self._is_sqlite else postgresql
        return dialect.insert(table).from_select(names, rows).on_conflict_do_nothing(index_elements=list(key))

    def insert_or_add(self, table: type[SQLModel], column: str) -> Any:
        """A statement for a list of rows: where one of the same primary key is there, its `column` is added to."""
        dialect = sqlite if self._is_sqlite else postgresql
        statement = dialect.insert(table)
        mapper: Any = inspect(table)
        return statement.on_conflict_do_update(
            index_elements=list(mapper.primary_key),
            set_={column: mapper.columns[column] + statement.excluded[column]},
        )

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


@contextmanager
def _bad_values_are_bad_input() -> Generator[None, None, None]:
    """Raise `InvalidInput` for text that the store cannot hold, wherever it comes in.

    Postgres holds no U+0000, and neither kind of store half a surrogate pair.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text must be whole Unicode characters: {error.reason}") from error
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if not str(state).startswith(_DATA_EXCEPTION):
            raise
        reason = str(error.orig).split(">: ", 1)[-1]
        raise InvalidInput(
            f"the store cannot hold a value, such as the character U+0000: {reason}"
        ) from error


def core(table: type[SQLModel]) -> Any:
    """The bare table of a mapped class: statements on it skip the ORM, which took a third of the time of each."""
    return inspect(table).local_table


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_SQLITE_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    # WAL with NORMAL survives the death of a process; only a power cut can take the last commits.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _begin_as_writer(connection: Connection) -> None:
    """The driver would begin at the first INSERT only, and change the schema outside of any transaction."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
