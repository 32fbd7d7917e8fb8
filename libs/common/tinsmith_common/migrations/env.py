"""Alembic runs this for every command, on the connection of its caller."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import DateTime, String
from sqlalchemy.types import TypeDecorator
from sqlmodel import SQLModel

import tinsmith_common.stores  # noqa: F401  # pyright: ignore[reportUnusedImport]  (it registers every table)


def _render(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Types of our own by what they are in the store, so that a revision never changes with the code."""
    if kind == "type" and isinstance(item, TypeDecorator):
        item = item.impl_instance
    if kind == "type" and isinstance(item, String):
        return "sa.String()"
    if kind == "type" and isinstance(item, DateTime):
        return "sa.DateTime(timezone=True)"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite changes a column by copying its table
    render_item=_render,
)
with context.begin_transaction():
    context.run_migrations()
