"""Audit log and usage (spec section 3.6)."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from tinsmith_common.wire.base import WireModel

AuditEventType = Literal["all", "checkpoints", "projects", "teams", "organizations"]


class AuditEntry(WireModel):
    """Something that was changed or taken away."""

    timestamp: AwareDatetime
    event: str
    event_details: dict[str, Any]
    tinker_path: str | None = None


class AuditResponse(WireModel):
    """One UTC day, oldest first."""

    entries: list[AuditEntry]


class CheckpointsUsed(WireModel):
    """Checkpoints saved in an hour."""

    type: Literal["checkpoint"] = "checkpoint"
    count: int


class TrainingUsed(WireModel):
    """Tokens of forward and forward_backward passes."""

    type: Literal["training"] = "training"
    token_count: int


class PrefillUsed(WireModel):
    """Prompt tokens of samples; `cached` ones were not computed anew."""

    type: Literal["sampling_prefill"] = "sampling_prefill"
    cached: bool
    token_count: int


class SampledUsed(WireModel):
    """Tokens sampled."""

    type: Literal["sampling_sample"] = "sampling_sample"
    token_count: int


class StorageUsed(WireModel):
    """Checkpoints stored: bytes / 10^9 times hours."""

    type: Literal["storage"] = "storage"
    free: bool = False
    gigabyte_hours: float


EventInfo = Annotated[
    TrainingUsed | PrefillUsed | SampledUsed | CheckpointsUsed | StorageUsed, Field(discriminator="type")
]


class UsageEvent(WireModel):
    """What a session used in one UTC hour. Costs are absent where no price is set."""

    bucket_start: AwareDatetime
    bucket_end: AwareDatetime
    base_model: str
    user_id: str
    session_id: str
    project_id: str | None = None
    estimated_cost_usd: float | None = None
    effective_rate_usd_per_million_tokens: float | None = None
    effective_rate_usd_per_gigabyte_month: float | None = None
    event_info: EventInfo


class UsageSession(WireModel):
    """What is known of a session that used something."""

    user_metadata: dict[str, str] | None = None


class UsageResponse(WireModel):
    """Usage by hour, and within an hour the most first. `cost_data_through` stays absent: nothing is invoiced."""

    data: list[UsageEvent]
    sessions: dict[str, UsageSession]
    cost_data_through: AwareDatetime | None = None


class StorageItem(WireModel):
    """What the live checkpoints of a project take up; a gigabyte is 10^9 bytes."""

    project_id: str | None = None
    org_user_urn: str
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float
    estimated_monthly_cost_usd: float | None = None


class StorageResponse(WireModel):
    """Current storage, by project."""

    data: list[StorageItem]
    effective_rate_usd_per_gigabyte_month: float | None = None
