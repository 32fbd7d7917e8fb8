"""What exists: sessions, training runs, checkpoints, sampling sessions."""

from tinsmith_common.catalog.catalog import Catalog
from tinsmith_common.catalog.records import (
    AuditRecord,
    CheckpointRecord,
    CopyRecord,
    Page,
    RunRecord,
    SamplingSessionRecord,
    SessionRecord,
)

__all__ = [
    "AuditRecord",
    "Catalog",
    "CheckpointRecord",
    "CopyRecord",
    "Page",
    "RunRecord",
    "SamplingSessionRecord",
    "SessionRecord",
]
