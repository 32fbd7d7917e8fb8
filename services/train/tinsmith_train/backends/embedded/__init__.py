"""The embedded backend: the engine on one Hugging Face model in one Ray actor, on a CPU or one GPU."""

from tinsmith_train.backends.embedded.backend import EmbeddedBackend
from tinsmith_train.backends.embedded.config import EmbeddedConfig

__all__ = ["EmbeddedBackend", "EmbeddedConfig"]
