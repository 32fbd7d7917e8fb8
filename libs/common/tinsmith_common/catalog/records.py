"""Catalog entries as the services see them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from tinsmith_common.checkpoints.paths import CheckpointKind, TinkerPath

T = TypeVar("T")


@dataclass(frozen=True)
class SessionRecord:
    """One client session. Times are UTC."""

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
class CopyRecord:
    """What the run `id` was made to hold a copy of."""

    id: str
    source_path: str
    created_at: datetime


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
