"""What exists: sessions, training runs, checkpoints, sampling sessions."""

from tinsmith_common.catalog.catalog import Catalog
from tinsmith_common.catalog.records import (
    AuditRecord,
    CheckpointRecord,
    CopyRecord,
    CustomLossRecord,
    InflightRecord,
    Page,
    RunRecord,
    SamplingSessionRecord,
    SessionRecord,
    Storage,
)
from tinsmith_common.catalog.search import SessionQuery

__all__ = [
    "AuditRecord",
    "Catalog",
    "CheckpointRecord",
    "CopyRecord",
    "CustomLossRecord",
    "InflightRecord",
    "Page",
    "RunRecord",
    "SamplingSessionRecord",
    "SessionQuery",
    "SessionRecord",
    "Storage",
]
