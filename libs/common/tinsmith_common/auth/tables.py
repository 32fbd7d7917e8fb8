"""The table of API keys."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column
from sqlmodel import Field, SQLModel

from tinsmith_common.catalog.tables import UtcDateTime


class ApiKeyRow(SQLModel, table=True):
    """See `ApiKey`. Rows are never removed, so that an id never names another key."""

    __tablename__: Any = "api_keys"

    id: int | None = Field(default=None, primary_key=True)
    digest: str = Field(unique=True)
    owner: str = Field(index=True)
    name: str
    note: str
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    last_used_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    revoked_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
