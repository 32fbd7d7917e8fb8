"""The interface between the scheduler and whatever trains.

A backend serves one base model and many adapters on it. Its methods are coroutines that never block the
loop; the scheduler calls them one at a time for a given backend. Directories are local paths that the
backend's workers can write and read.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tinsmith_common.errors import EngineFailure, TinsmithError
from tinsmith_train.engine.types import (
    AdamParams,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
    PassPart,
)


class WorkerLost(EngineFailure):
    """The process that held the model died, and every adapter in its memory with it. `start` begins anew."""


class EngineClock:
    """When the engine worked on what it was asked since the last `reset`, as its own process says; UTC."""

    def __init__(self) -> None:
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None

    def reset(self) -> None:
        """Forget."""
        self.started_at = self.ended_at = None

    def note(self, started_at: datetime, ended_at: datetime) -> None:
        """Take up one call: the first one's start and the last one's end are kept."""
        self.started_at = self.started_at or started_at
        self.ended_at = ended_at


class TrainBackend(Protocol):
    """One base model, loaded, with LoRA slots."""

    @property
    def clock(self) -> EngineClock:
        """Told of every call that went well."""
        ...

    async def start(self) -> ModelInfo:
        """Load the base model. Raises `EngineFailure` with what to change when it cannot."""
        ...

    async def stop(self) -> None:
        """Release workers and memory. Safe to call twice, and before `start`."""
        ...

    async def create_adapter(self, adapter_id: str, spec: LoraSpec) -> None:
        """Give `adapter_id` freshly initialised weights and an empty optimizer."""
        ...

    async def delete_adapter(self, adapter_id: str) -> None:
        """Free the adapter's slot. Unknown ids are ignored."""
        ...

    async def forward_backward(
        self, parts: Sequence[PassPart]
    ) -> Sequence[ForwardBackwardResult | TinsmithError | None]:
        """Run one part of each pass, all as one packed batch; gradients add to each adapter's accumulator.

        Answers one entry per part, in order: None while its pass goes on. A bad pass (unknown loss, missing or
        mis-shaped input, token outside the vocabulary, NaN) yields its error with its first part, or when it
        shows, and leaves the others untouched and its own accumulated gradient as before its first part. A
        pass of several parts shares no call with another of its adapter, and is given up, its gradient taken
        back, by any other use of its adapter before its last part.
        """
        ...

    async def optim_step(self, adapter_id: str, params: AdamParams) -> dict[str, float]:
        """Apply one AdamW step with the accumulated gradient and clear it. Returns metrics."""
        ...

    async def save_state(self, adapter_id: str, directory: Path) -> None:
        """Write weights, optimizer moments and step count into an existing empty directory."""
        ...

    async def load_state(self, adapter_id: str, directory: Path, *, with_optimizer: bool) -> LoraSpec:
        """Replace the adapter's weights (creating it, with the saved shape, if new); moments too, or reset
        them. Clears accumulated gradients. Returns the shape that was saved."""
        ...

    async def export_adapter(self, adapter_id: str, directory: Path) -> None:
        """Write the weights as a PEFT folder into an existing empty directory."""
        ...
