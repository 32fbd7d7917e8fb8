"""The interface between the scheduler and whatever trains.

A backend serves one base model and many adapters on it. Its methods are coroutines that never block the
loop; the scheduler calls them one at a time for a given backend. Directories are local paths that the
backend's workers can write and read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tinsmith_common.errors import EngineFailure, TinsmithError
from tinsmith_train.engine.types import (
    AdamParams,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
)


class WorkerLost(EngineFailure):
    """The process that held the model died, and every adapter in its memory with it. `start` begins anew."""


class TrainBackend(Protocol):
    """One base model, loaded, with LoRA slots."""

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
        self, batch: Sequence[ForwardBackward]
    ) -> Sequence[ForwardBackwardResult | TinsmithError]:
        """Run all items as one packed batch; gradients add to each adapter's accumulator.

        Answers one entry per item, in order. A bad item (unknown loss, missing or mis-shaped input,
        token outside the vocabulary, NaN) yields its error and leaves the others and its own
        accumulated gradient untouched.
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
