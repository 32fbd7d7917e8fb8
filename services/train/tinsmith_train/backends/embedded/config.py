"""Options of the embedded backend."""

from dataclasses import dataclass, field
from typing import Literal

from tinsmith_train.engine.types import TrainerLimits

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class EmbeddedConfig:
    """One base model in one worker.

    base_model:      the name users know, also written into exported adapters.
    source:          folder or hub id to load from; `base_model` if not given.
    device:          `auto` is CUDA when Ray has a GPU to give, else the CPU.
    dtype:           of the frozen weights; `auto` is bfloat16 on CUDA and float32 on the CPU.
    threads:         CPU threads of the worker; all cores if not given.
    limits:          memory of a pass.
    max_context_length: tokens of the longest datum; the model's own limit if not given, and never more.
    start_timeout_s: how long placing the worker and loading the model may take.
    """

    base_model: str
    source: str | None = None
    device: Device = "auto"
    dtype: DType = "auto"
    threads: int | None = None
    limits: TrainerLimits = field(default_factory=TrainerLimits)
    max_context_length: int | None = None
    start_timeout_s: float = 600.0
