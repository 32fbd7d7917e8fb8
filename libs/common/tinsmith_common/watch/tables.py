"""Tables of what people watch. Nothing else depends on them."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column
from sqlmodel import Field, SQLModel

from tinsmith_common.catalog.tables import UtcDateTime


class RunStepRow(SQLModel, table=True):
    """See `Step`. `number` counts the optimizer steps of a run from 1."""

    __tablename__: Any = "run_steps"

    run_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    seq_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))
    loss: str | None = None
    loss_sum: float | None = None
    weight_sum: float | None = None
    advantage_mean: float | None = None
    datums: int = 0
    tokens: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    grad_norm: float | None = None
    learning_rate: float | None = None
    optimizer_step: int | None = Field(default=None, sa_column=Column(BigInteger))


class RunReportRow(SQLModel, table=True):
    """See `Report`. `number` counts those of one name in a run from 1."""

    __tablename__: Any = "run_reports"

    run_id: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))
    step: int | None = Field(default=None, sa_column=Column(BigInteger))
    value: float


class ReplicaReportRow(SQLModel, table=True):
    """See `ReplicaReport`."""

    __tablename__: Any = "replica_reports"

    id: str = Field(primary_key=True)
    host: str
    started_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    reported_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))
    report: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
