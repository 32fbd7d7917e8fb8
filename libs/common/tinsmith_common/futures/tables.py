"""The promise table."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, DateTime, LargeBinary
from sqlmodel import Field, SQLModel


class PromiseRow(SQLModel, table=True):
    """One promise. Bodies over a limit live in the blob store, under the request id."""

    __tablename__: Any = "promises"

    request_id: str = Field(primary_key=True)
    kind: str
    service: str
    owner: str
    state: str = Field(default="pending", index=True)
    request: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    request_in_blob: bool = False
    payload: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    payload_in_blob: bool = False
    media_type: str | None = None
    error: str | None = None
    category: str | None = None
    created_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True), index=True))
