"""Audit log and usage (spec section 3.6)."""

from typing import Any, Literal

from pydantic import AwareDatetime

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


class UsageEvent(WireModel):
    """What a session used in one UTC hour."""

    bucket_start: AwareDatetime
    bucket_end: AwareDatetime
    session_id: str
    event_info: CheckpointsUsed


class UsageResponse(WireModel):
    """Usage by hour. Tokens are not metered yet."""

    data: list[UsageEvent]


class StorageItem(WireModel):
    """What the live checkpoints of a project take up; a gigabyte is 10^9 bytes."""

    project_id: str | None
    org_user_urn: str
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float


class StorageResponse(WireModel):
    """Current storage, by project."""

    data: list[StorageItem]
