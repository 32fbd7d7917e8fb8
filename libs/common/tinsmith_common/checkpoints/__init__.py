"""`tinker://` paths and the folders behind them."""

from tinsmith_common.checkpoints.paths import CheckpointKind, TinkerPath, check_name
from tinsmith_common.checkpoints.store import CheckpointStore

__all__ = ["CheckpointKind", "CheckpointStore", "TinkerPath", "check_name"]
