"""What exists: sessions, training runs, checkpoints, sampling sessions."""

from tinsmith_common.catalog.catalog import Catalog
from tinsmith_common.catalog.records import (
    AuditRecord,
    CheckpointRecord,
    CustomLossRecord,
    InflightRecord,
    Page,
    RunRecord,
    SamplingSessionRecord,
    SessionRecord,
    Storage,
    StoredCheckpoint,
    Usage,
    UsageHour,
    UsageKind,
)
from tinsmith_common.catalog.search import SessionQuery
from tinsmith_common.catalog.usage import UsageLedger

__all__ = [
    "AuditRecord",
    "Catalog",
    "CheckpointRecord",
    "CustomLossRecord",
    "InflightRecord",
    "Page",
    "RunRecord",
    "SamplingSessionRecord",
    "SessionQuery",
    "SessionRecord",
    "Storage",
    "StoredCheckpoint",
    "Usage",
    "UsageHour",
    "UsageKind",
    "UsageLedger",
]
