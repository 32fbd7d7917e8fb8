"""Brings a store up to this version of the code."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from tinsmith_common.errors import StoreUnusable
from tinsmith_common.observability import get_logger

_log = get_logger(__name__)

# Any number that nothing else locks in the same Postgres database.
_POSTGRES_LOCK = 7_465_736_173_6


def upgrade(connection: Connection) -> None:
    """Apply the revisions that this store does not have, in the caller's transaction.

    One that waits here for another service finds its work done. On SQLite the transaction must have begun as a
    writer. Raises `StoreUnusable` when the store has revisions that this code does not know.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _POSTGRES_LOCK})
    config = alembic_config(connection)
    scripts = ScriptDirectory.from_config(config)
    present = set(MigrationContext.configure(connection).get_current_heads())
    if newer := present - {script.revision for script in scripts.walk_revisions()}:
        raise StoreUnusable(
            f"it was upgraded to revision {', '.join(sorted(newer))} by a newer Tinsmith: start that version, or "
            "name another store"
        )
    if present != set(scripts.get_heads()):
        command.upgrade(config, "head")
        _log.info("store upgraded", before=sorted(present), now=scripts.get_heads())


def alembic_config(connection: Connection) -> Config:
    """What alembic's commands need to work on this connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config
