"""Catalog entries as the services see them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from tinsmith_common.checkpoints.paths import CheckpointKind, TinkerPath

T = TypeVar("T")


@dataclass(frozen=True)
class SessionRecord:
    """One client session. Times are UTC.

    `failure`: what made it fail, in the words of the protocol (`category`, `message`, `reason`).
    """

    id: str
    owner: str
    created_at: datetime
    last_seen_at: datetime
    tags: tuple[str, ...] = ()
    user_metadata: Mapping[str, Any] | None = None
    display_name: str | None = None
    project_id: str | None = None
    sdk_version: str | None = None
    finish_reason: str | None = None
    finish_detail: str | None = None
    closed_at: datetime | None = None
    failure: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunRecord:
    """One training run, that is one model with its adapter."""

    id: str
    session_id: str
    owner: str
    base_model: str
    rank: int
    alpha: float
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    created_at: datetime
    last_request_at: datetime
    user_metadata: Mapping[str, str] | None = None
    corrupted: bool = False
    copied_from: str | None = None
    """The checkpoint that this run was made to hold a copy of. Such a run cannot be trained."""


@dataclass(frozen=True)
class CheckpointRecord:
    """One saved checkpoint. `key` is where the checkpoint store holds it."""

    path: str
    run_id: str
    owner: str
    kind: str
    name: str
    key: str
    size_bytes: int
    created_at: datetime
    base_model: str
    rank: int
    alpha: float
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    expires_at: datetime | None = None
    public: bool = False
    user_metadata: Mapping[str, str] | None = None

    @property
    def tinker_path(self) -> TinkerPath:
        """The parsed form of `path`."""
        return TinkerPath(self.run_id, CheckpointKind(self.kind), self.name)


@dataclass(frozen=True)
class SamplingSessionRecord:
    """What a sampling client samples from: the base model, saved weights (`weights_key`), or whatever the run
    `inflight_run` saved last as inflight weights."""

    id: str
    session_id: str
    owner: str
    base_model: str
    created_at: datetime
    model_path: str | None = None
    weights_key: str | None = None
    inflight_run: str | None = None


@dataclass(frozen=True)
class InflightRecord:
    """The newest inflight weights of the run `id`."""

    id: str
    weights_key: str
    created_at: datetime


@dataclass(frozen=True)
class CustomLossRecord:
    """A loss that a client uploaded, valid in its session. `definition` is the upload: `inputs` and `graph`."""

    id: str
    session_id: str
    owner: str
    name: str
    created_at: datetime
    definition: Mapping[str, Any]


@dataclass(frozen=True)
class AuditRecord:
    """Something that `owner` changed or took away."""

    id: str
    owner: str
    created_at: datetime
    event: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Storage:
    """Live checkpoints and their bytes."""

    count: int
    size_bytes: int


@dataclass(frozen=True)
class Page(Generic[T]):
    """A slice of a listing with the exact size of the whole."""

    items: tuple[T, ...]
    offset: int
    limit: int
    total: int


class UsageKind(StrEnum):
    """What is counted. All are tokens, except the checkpoints."""

    TRAINING = "training"
    PREFILL = "sampling_prefill"
    PREFILL_CACHED = "sampling_prefill_cached"
    SAMPLED = "sampling_sample"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Usage:
    """What one piece of work used, and for whom it is counted besides the owner."""

    session_id: str
    base_model: str
    quantities: Mapping[UsageKind, int]


@dataclass(frozen=True)
class UsageHour:
    """The sum of one kind of usage in the UTC hour that begins at `hour`."""

    owner: str
    hour: datetime
    session_id: str
    base_model: str
    kind: UsageKind
    quantity: int


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's time in the store; it is there still while `ended_at` is None."""

    session_id: str
    base_model: str
    size_bytes: int
    started_at: datetime
    ended_at: datetime | None
