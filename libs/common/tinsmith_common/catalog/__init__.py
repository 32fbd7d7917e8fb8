"""What exists: sessions, training runs, checkpoints, sampling sessions."""

from tinsmith_common.catalog.catalog import Catalog
from tinsmith_common.catalog.records import (
    CheckpointRecord,
    CustomLossRecord,
    Page,
    RunRecord,
    SamplingSessionRecord,
    SessionRecord,
)

__all__ = [
    "Catalog",
    "CheckpointRecord",
    "CustomLossRecord",
    "Page",
    "RunRecord",
    "SamplingSessionRecord",
    "SessionRecord",
]
