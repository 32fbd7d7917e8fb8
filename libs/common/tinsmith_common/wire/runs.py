"""Listings of runs and checkpoints (spec section 3.6)."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from tinsmith_common.wire.base import WireModel
from tinsmith_common.wire.weights import TTL_MAX_S, TTL_MIN_S

AccessScope = Literal["owned", "accessible"]
"""Whose things to list: the caller's own, or also what others have published."""


class Checkpoint(WireModel):
    """One checkpoint. Times carry a zone."""

    checkpoint_id: str
    checkpoint_type: str
    time: datetime
    tinker_path: str
    base_model: str
    size_bytes: int
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: datetime | None = None


class TrainingRun(WireModel):
    """One run."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool = True
    lora_rank: int | None
    corrupted: bool = False
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class Cursor(WireModel):
    """Where a listing stands; the CLI loops until it has `total_count` entries."""

    offset: int
    limit: int
    total_count: int


class TrainingRunsResponse(WireModel):
    """A page of runs, newest first."""

    training_runs: list[TrainingRun]
    cursor: Cursor


class CheckpointsResponse(WireModel):
    """Checkpoints, with a cursor where the listing is paged."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class SetTtlRequest(WireModel):
    """Counts from now; null keeps for ever."""

    ttl_seconds: int | None = Field(default=None, ge=TTL_MIN_S, le=TTL_MAX_S)
