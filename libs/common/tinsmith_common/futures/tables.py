"""The tables of promises and of their endings."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, LargeBinary
from sqlmodel import Field, SQLModel

from tinsmith_common.catalog.tables import UtcDateTime


class PromiseRow(SQLModel, table=True):
    """One promise. Bodies over a limit live in the blob store, under the request id.

    What a `Span` tells of it is written with its ending, in the same statement. `holder` is the process that
    carries it out, where a service has several.
    """

    __tablename__: Any = "promises"

    request_id: str = Field(primary_key=True)
    session_id: str = Field(index=True)
    kind: str
    service: str
    owner: str
    holder: str | None = None
    state: str = Field(default="pending", index=True)
    request: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    request_in_blob: bool = False
    payload: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    payload_in_blob: bool = False
    media_type: str | None = None
    error: str | None = None
    category: str | None = None
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    started_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    computed_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    finished_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, index=True))
    quantities: dict[str, int] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))


class HolderRow(SQLModel, table=True):
    """A process that carries out promises. `beats` grows every `beat_s` seconds for as long as it lives; `place`
    is where it listens."""

    __tablename__: Any = "holders"

    id: str = Field(primary_key=True)
    service: str
    place: str
    beats: int = Field(sa_column=Column(BigInteger, nullable=False))
    beat_s: float
    started_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))


class SpanRow(SQLModel, table=True):
    """What is kept of a promise that was forgotten. Names are those of `PromiseRow`."""

    __tablename__: Any = "spans"

    request_id: str = Field(primary_key=True)
    session_id: str = Field(index=True)
    kind: str
    owner: str
    state: str
    error: str | None = None
    category: str | None = None
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    started_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    computed_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    finished_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))
    quantities: dict[str, int] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))


class CompletionRow(SQLModel, table=True):
    """One ending in a queue. `payload_bytes` is None where it failed."""

    __tablename__: Any = "completions"
    __table_args__: Any = (Index("completions_in_order", "queue", "event"),)

    request_id: str = Field(primary_key=True)
    queue: str
    event: int = Field(sa_column=Column(BigInteger, nullable=False))
    owner: str
    payload_bytes: int | None = Field(default=None, sa_column=Column(BigInteger))


class CompletionQueueRow(SQLModel, table=True):
    """The last number that a queue has given."""

    __tablename__: Any = "completion_queues"

    name: str = Field(primary_key=True)
    last_event: int = Field(sa_column=Column(BigInteger, nullable=False))
