"""Writes a migration from what changed in the tables: `python -m tools.migration "what it does"`.

The tables as the existing revisions make them are compared with those of the code. Read the result before you
commit it: a renamed column looks like one that was dropped and one that was added.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from tinsmith_common.database import Database
from tinsmith_common.migrations import alembic_config


def write_revision(connection: Connection, message: str) -> None:
    """Add the next numbered revision to the package."""
    config = alembic_config(connection)
    count = len(list(ScriptDirectory.from_config(config).walk_revisions()))
    command.revision(config, message, autogenerate=True, rev_id=f"{count + 1:04}")


async def main() -> None:
    """Compare on an empty SQLite store."""
    parser = argparse.ArgumentParser(prog="python -m tools.migration", description=__doc__)
    parser.add_argument("message", help="what it does, e.g. 'usage events'")
    message: str = parser.parse_args().message
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite+aiosqlite:///{Path(folder) / 'store.db'}")
        await database.migrate()
        async with database.write() as connection:
            await connection.run_sync(write_revision, message)
        await database.close()


if __name__ == "__main__":
    asyncio.run(main())
