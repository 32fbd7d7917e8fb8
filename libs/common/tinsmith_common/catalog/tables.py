"""Catalog tables. Column names equal the fields of the records they hold."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, DateTime
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """A time-zone-aware UTC time; SQLite would hand it back without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Name the zone again."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _time(*, nullable: bool = False, index: bool = False) -> Any:
    return Column(UtcDateTime, nullable=nullable, index=index)


class SessionRow(SQLModel, table=True):
    """See `SessionRecord`."""

    __tablename__: Any = "sessions"

    id: str = Field(primary_key=True)
    owner: str = Field(index=True)
    created_at: datetime = Field(sa_column=_time(index=True))
    last_seen_at: datetime = Field(sa_column=_time())
    tags: list[str] = Field(default_factory=list, sa_column=Column(JSON))
    user_metadata: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    display_name: str | None = None
    project_id: str | None = None
    sdk_version: str | None = None
    finish_reason: str | None = None
    finish_detail: str | None = None
    closed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    failure: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))


class RunRow(SQLModel, table=True):
    """See `RunRecord`."""

    __tablename__: Any = "training_runs"

    id: str = Field(primary_key=True)
    session_id: str = Field(index=True)
    owner: str = Field(index=True)
    base_model: str
    rank: int
    alpha: float
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    created_at: datetime = Field(sa_column=_time(index=True))
    last_request_at: datetime = Field(sa_column=_time())
    user_metadata: dict[str, str] | None = Field(default=None, sa_column=Column(JSON))
    corrupted: bool = False
    copied_from: str | None = None


class CheckpointRow(SQLModel, table=True):
    """See `CheckpointRecord`."""

    __tablename__: Any = "checkpoints"

    path: str = Field(primary_key=True)
    run_id: str = Field(index=True)
    owner: str = Field(index=True)
    kind: str
    name: str
    key: str
    size_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    created_at: datetime = Field(sa_column=_time(index=True))
    base_model: str
    rank: int
    alpha: float
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    expires_at: datetime | None = Field(default=None, sa_column=_time(nullable=True, index=True))
    public: bool = False
    user_metadata: dict[str, str] | None = Field(default=None, sa_column=Column(JSON))


class CustomLossRow(SQLModel, table=True):
    """See `CustomLossRecord`."""

    __tablename__: Any = "custom_losses"

    id: str = Field(primary_key=True)
    session_id: str = Field(index=True)
    owner: str
    name: str
    created_at: datetime = Field(sa_column=_time())
    definition: dict[str, Any] = Field(sa_column=Column(JSON))


class SamplingSessionRow(SQLModel, table=True):
    """See `SamplingSessionRecord`."""

    __tablename__: Any = "sampling_sessions"

    id: str = Field(primary_key=True)
    session_id: str = Field(index=True)
    owner: str
    base_model: str
    created_at: datetime = Field(sa_column=_time())
    model_path: str | None = None
    weights_key: str | None = None
    inflight_run: str | None = None


class InflightRow(SQLModel, table=True):
    """See `InflightRecord`."""

    __tablename__: Any = "inflight_weights"

    id: str = Field(primary_key=True)
    weights_key: str
    created_at: datetime = Field(sa_column=_time())


class SamplingCloneRow(SQLModel, table=True):
    """How many clients have joined a sampling session besides its first."""

    __tablename__: Any = "sampling_clones"

    sampling_session_id: str = Field(primary_key=True)
    clones: int


class AuditRow(SQLModel, table=True):
    """See `AuditRecord`."""

    __tablename__: Any = "audit"

    id: str = Field(primary_key=True)
    owner: str = Field(index=True)
    created_at: datetime = Field(sa_column=_time(index=True))
    event: str
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON))


class UsageRow(SQLModel, table=True):
    """See `UsageHour`. The key begins with what a bill asks for."""

    __tablename__: Any = "usage_hours"

    owner: str = Field(primary_key=True)
    hour: datetime = Field(sa_column=Column(UtcDateTime, primary_key=True))
    session_id: str = Field(primary_key=True)
    base_model: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    quantity: int = Field(sa_column=Column(BigInteger, nullable=False))


class StoredRow(SQLModel, table=True):
    """See `StoredCheckpoint`. Rows stay when their checkpoint is gone: they are what was stored, and when."""

    __tablename__: Any = "stored_checkpoints"

    id: str = Field(primary_key=True)
    path: str = Field(index=True)
    owner: str = Field(index=True)
    session_id: str
    base_model: str
    size_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    started_at: datetime = Field(sa_column=_time())
    ended_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
