"""SQLite for SQLAlchemy's asyncio with one trip to the connection's thread per statement.

The plain driver goes there five times for one: to make a cursor, execute, fetch, close, and to roll back what was
never begun. Under load these trips, and the waiting for the interpreter that each brings, were most of what a
request cost.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import aiosqlite


class Cursor(aiosqlite.Cursor):
    """Fetches what a statement answers while it is in the thread. Made for SQLAlchemy, which fetches everything."""

    _conn: "Connection"
    _rows: list[Any] = []  # noqa: RUF012 - replaced, never changed

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> "Cursor":
        """Execute and fetch."""
        await self._execute(self._execute_and_fetch, sql, () if parameters is None else parameters)
        return self

    async def fetchall(self) -> list[Any]:
        """All rows."""
        return self._rows

    async def close(self) -> None:
        """Close it here, where its statement has run to its end."""
        if self._conn.abandoned:
            await super().close()
        else:
            self._cursor.close()

    def _execute_and_fetch(self, sql: str, parameters: Iterable[Any]) -> None:
        self._cursor.execute(sql, parameters)  # pyright: ignore[reportArgumentType]
        self._rows = self._cursor.fetchall() if self._cursor.description else []


class Connection(aiosqlite.Connection):
    """One thread and one connection, which only one task at a time may use."""

    abandoned = False
    """Whether somebody stopped waiting for the thread, which may still be at work: it is then asked for everything."""

    def cursor(self) -> Cursor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A cursor, made where it is asked for."""
        return Cursor(self, self._conn.cursor())

    async def rollback(self) -> None:
        """Roll back the transaction, if one was begun."""
        if self.abandoned or self._conn.in_transaction:
            await super().rollback()

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._execute(fn, *args, **kwargs)
        except asyncio.CancelledError:
            self.abandoned = True
            raise


def connect(database: str, **options: Any) -> Connection:
    """What SQLAlchemy's `async_creator_fn` has to be. Connections are used from two threads, in turns."""
    options["check_same_thread"] = False
    connection = Connection(lambda: sqlite3.connect(database, **options), iter_chunk_size=64)
    connection._thread.daemon = True  # pyright: ignore[reportPrivateUsage]
    return connection
