"""The SQLite driver: what a statement answers, what a transaction undoes, and how often the thread is visited."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tinsmith_common import sqlite
from tinsmith_common.database import Database


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncGenerator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'store.db'}")
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER)"))
        await connection.execute(text("INSERT INTO numbers VALUES ('a', 1), ('b', 2), ('c', 3)"))
    yield database
    await database.close()


async def values(database: Database) -> list[tuple[str, int]]:
    async with database.read() as connection:
        rows = await connection.execute(text("SELECT name, value FROM numbers ORDER BY name"))
        return [(row.name, row.value) for row in rows.all()]


async def test_a_query_answers_all_its_rows(database: Database) -> None:
    assert await values(database) == [("a", 1), ("b", 2), ("c", 3)]


async def test_a_change_tells_how_many_rows_it_met(database: Database) -> None:
    async with database.write() as connection:
        result = await connection.execute(text("UPDATE numbers SET value = value + 10 WHERE value > 1"))
        assert result.rowcount == 2


async def test_a_change_can_answer_rows(database: Database) -> None:
    async with database.write() as connection:
        result = await connection.execute(
            text("UPDATE numbers SET value = 7 WHERE name = :name RETURNING value"), {"name": "a"}
        )
        assert result.scalar_one() == 7
    assert (await values(database))[0] == ("a", 7)


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(text("UPDATE numbers SET value = 0"))
            await connection.execute(text("INSERT INTO numbers VALUES ('a', 9)"))

    with pytest.raises(IntegrityError):
        await fail()
    assert await values(database) == [("a", 1), ("b", 2), ("c", 3)]


async def test_transactions_cancelled_anywhere_leave_nothing_and_lock_nothing(database: Database) -> None:
    async def double() -> None:
        async with database.write() as connection:
            await connection.execute(text("UPDATE numbers SET value = value + 1 WHERE name = 'a'"))
            await connection.execute(text("UPDATE numbers SET value = value + 1 WHERE name = 'b'"))

    for turns in range(200):
        task = asyncio.create_task(double())
        for _ in range(turns % 40):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(20):
        (_, first), (_, second), _ = await values(database)
        # Both statements of a transaction or neither: the rows began one apart.
        assert second - first == 1
        await double()
        assert (await values(database))[0] == ("a", first + 1)


async def test_many_rows_go_in_with_one_statement(database: Database) -> None:
    rows = [{"name": f"n{index}", "value": index} for index in range(500)]
    async with database.write() as connection:
        await connection.execute(text("INSERT INTO numbers VALUES (:name, :value)"), rows)
    assert len(await values(database)) == 503


async def test_a_statement_goes_to_the_thread_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips: list[str] = []
    visit: Any = sqlite.Connection._execute  # pyright: ignore[reportPrivateUsage]

    async def counted(self: sqlite.Connection, function: Any, *arguments: Any, **options: Any) -> Any:
        trips.append(function.__name__)
        return await visit(self, function, *arguments, **options)

    monkeypatch.setattr(sqlite.Connection, "_execute", counted)
    await values(database)
    assert trips == ["_execute_and_fetch"]
    trips.clear()
    async with database.write() as connection:
        await connection.execute(text("UPDATE numbers SET value = 5"))
        await connection.execute(text("DELETE FROM numbers WHERE name = 'c'"))
    assert trips == ["_execute_and_fetch", "_execute_and_fetch", "commit"]
