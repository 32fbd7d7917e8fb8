"""Migrations, on both kinds of store."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from tinsmith_common.database import Database
from tinsmith_common.errors import StoreUnusable
from tinsmith_common.futures import Outcome
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

UNVERSIONED = Path(__file__).parent / "stores"


@pytest_asyncio.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    database = Database(store_url)
    yield database
    await database.close()


async def run(database: Database, *statements: str) -> None:
    async with database.write() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    async with database.read() as connection:
        return [tuple(row) for row in (await connection.execute(text(query))).all()]


async def make_unversioned(database: Database) -> None:
    """What services of the time before migrations left behind."""
    kind = database.name.split("+")[0]
    script = (UNVERSIONED / f"unversioned-{kind}.sql").read_text().split("\n", 1)[1]
    await run(database, *(part.replace(":", r"\:") for part in script.split(";\n") if part.strip()))


def differences(connection: Connection) -> list[Any]:
    return compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)


async def differences_of(database: Database) -> list[Any]:
    async with database.read() as connection:
        return await connection.run_sync(differences)


async def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    await database.migrate()
    assert await differences_of(database) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE sessions DROP COLUMN project_id",
        "DROP INDEX ix_sessions_owner",
        "DROP TABLE sampling_clones",
    ],
)
async def test_the_comparison_sees_what_is_missing(database: Database, change: str) -> None:
    await database.migrate()
    await run(database, change)
    assert len(await differences_of(database)) == 1


async def test_a_store_from_before_migrations_keeps_its_rows(
    database: Database, settings: CommonSettings
) -> None:
    await make_unversioned(database)
    stores = Stores.build(settings, "train")
    await stores.open()
    session = await stores.catalog.sessions.get("s")
    assert session is not None
    assert (session.tags, session.user_metadata, session.project_id) == (("a",), {"k": "v"}, "apples")
    page = await stores.catalog.runs.visible_to("local", 0, 10)
    assert [(run.id, run.copied_from) for run in page.items] == [
        ("s:train:1", "tinker://s:train:0/weights/one"),
        ("s:train:0", None),
    ]
    checkpoint = await stores.catalog.checkpoints.find("tinker://s:train:0/weights/one")
    assert checkpoint is not None
    assert (checkpoint.size_bytes, checkpoint.public, checkpoint.created_at.minute) == (7, True, 10)
    assert await stores.futures.wait("s:train:0:1", "local", 0) == Outcome(b"result")
    assert len(await rows(stores.database, "SELECT id FROM audit")) == 1
    await stores.close()


async def test_a_store_from_before_migrations_gets_the_tables_of_the_code(database: Database) -> None:
    await make_unversioned(database)
    await database.migrate()
    assert await differences_of(database) == []


async def test_sizes_over_2_gib_fit(database: Database) -> None:
    await make_unversioned(database)
    await database.migrate()
    await run(database, f"UPDATE checkpoints SET size_bytes = {2**40}")
    assert await rows(database, "SELECT size_bytes FROM checkpoints") == [(2**40,)]


async def test_a_migration_that_fails_changes_nothing(database: Database) -> None:
    await make_unversioned(database)
    await run(database, "CREATE TABLE api_keys (id INTEGER)")
    with pytest.raises(StoreUnusable, match="api_keys"):
        await database.migrate()
    await run(database, "DROP TABLE api_keys")
    assert await rows(database, "SELECT id FROM copies") == [("s:train:1",)]
    await database.migrate()
    assert await differences_of(database) == []


async def test_services_that_start_at_once_migrate_once(database: Database, store_url: str) -> None:
    await make_unversioned(database)
    code = (
        "import asyncio, sys; from tinsmith_common.database import Database; "
        "sys.stdin.read(); asyncio.run(Database(sys.argv[1]).migrate())"
    )
    arguments = (sys.executable, "-c", code, store_url)
    starts = [await asyncio.create_subprocess_exec(*arguments, stdin=subprocess.PIPE) for _ in range(2)]
    await asyncio.gather(*(start.communicate(b"") for start in starts))
    assert [start.returncode for start in starts] == [0, 0]
    assert await differences_of(database) == []


async def test_two_stores_can_be_migrated_at_once_in_one_process(store_url: str, tmp_path: Path) -> None:
    databases = [Database(store_url), Database(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")]
    await asyncio.gather(*(database.migrate() for database in databases))
    for database in databases:
        assert await differences_of(database) == []
        await database.close()


async def test_a_store_of_a_newer_version_is_refused_untouched(database: Database) -> None:
    await database.migrate()
    await run(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnusable, match=r"9999 by a newer Tinsmith: start that version"):
        await database.migrate()
    assert await rows(database, "SELECT version_num FROM alembic_version") == [("9999",)]


async def test_a_store_that_cannot_be_reached_is_named_without_its_password() -> None:
    database = Database("postgresql+asyncpg://ann:hidden@127.0.0.1:1/none")
    with pytest.raises(StoreUnusable, match=r"cannot use the store postgresql") as error:
        await database.migrate()
    assert "hidden" not in error.value.message
    await database.close()
