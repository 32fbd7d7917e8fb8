"""The process that holds the model: a Ray actor around `LoraTrainer`. Imported where Ray puts it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinsmith_common.errors import TinsmithError
from tinsmith_train.backends.embedded.config import EmbeddedConfig
from tinsmith_train.engine.types import (
    AdamParams,
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
    PassPart,
)

if TYPE_CHECKING:
    from tinsmith_train.engine.trainer import LoraTrainer

SMALL_PASS_TOKENS = 256
"""Below this one thread is faster than handing out each of a thousand short operations."""


_WARM_UP = "warm-up"


class TrainWorker:
    """The methods of `TrainBackend`, blocking. Ray runs an actor's calls one after another.

    torch is imported by the methods: the service that places this class has no use for it, and starts seconds
    sooner and some 300 MB smaller without.
    """

    def __init__(self, config: EmbeddedConfig) -> None:
        self._config = config
        self._threads = config.threads or os.cpu_count() or 1
        self._trainer: LoraTrainer

    def call(self, method: str, *args: Any) -> tuple[float, float, Any]:
        """Run one of the methods below. When it began and ended (`time.time`), and what it answers."""
        started = time.time()
        value = getattr(self, method)(*args)
        return started, time.time(), value

    def load(self) -> ModelInfo:
        """Load the base model. Comes before all else, and not in the constructor, whose errors Ray swallows."""
        from transformers.utils import logging as transformers_logging

        from tinsmith_train.engine.model import load_base_model
        from tinsmith_train.engine.trainer import LoraTrainer

        config = self._config
        transformers_logging.disable_progress_bar()
        base = load_base_model(config.base_model, config.source, config.device, config.dtype)
        if config.max_context_length is not None:
            longest = min(config.max_context_length, base.info.max_context_length)
            base = replace(base, info=replace(base.info, max_context_length=longest))
        self._trainer = LoraTrainer(base, config.limits)
        self._warm_up()
        return self._trainer.info

    def _warm_up(self) -> None:
        """Do once what is slow the first time: libraries start their threads and choose their kernels."""
        self.create_adapter(_WARM_UP, LoraSpec(8))
        longest = self._trainer.info.max_context_length
        for tokens in (16, SMALL_PASS_TOKENS):
            ids = np.zeros(min(tokens, longest), np.int64)
            datum = Datum(ids, ids, {"weights": np.ones(ids.size, np.float32)})
            self.forward_backward(
                [PassPart.whole(_WARM_UP, ForwardBackward(_WARM_UP, (datum,), "cross_entropy"))]
            )
        self.optim_step(_WARM_UP, AdamParams())
        self.delete_adapter(_WARM_UP)

    def create_adapter(self, adapter_id: str, spec: LoraSpec) -> None:
        """See `TrainBackend`."""
        self._trainer.create_adapter(adapter_id, spec)

    def delete_adapter(self, adapter_id: str) -> None:
        """See `TrainBackend`."""
        self._trainer.delete_adapter(adapter_id)

    def forward_backward(
        self, parts: Sequence[PassPart]
    ) -> Sequence[ForwardBackwardResult | TinsmithError | None]:
        """See `TrainBackend`."""
        import torch

        tokens = sum(part.tokens for part in parts)
        small = tokens < SMALL_PASS_TOKENS and self._trainer.steady_threads
        torch.set_num_threads(1 if small else self._threads)
        return self._trainer.run_parts(parts)

    def optim_step(self, adapter_id: str, params: AdamParams) -> dict[str, float]:
        """See `TrainBackend`."""
        return self._trainer.optim_step(adapter_id, params)

    def save_state(self, adapter_id: str, directory: Path) -> None:
        """See `TrainBackend`."""
        self._trainer.save_state(adapter_id, directory)

    def load_state(self, adapter_id: str, directory: Path, with_optimizer: bool) -> LoraSpec:
        """See `TrainBackend`."""
        return self._trainer.load_state(adapter_id, directory, with_optimizer=with_optimizer)

    def export_adapter(self, adapter_id: str, directory: Path) -> None:
        """See `TrainBackend`."""
        self._trainer.export_adapter(adapter_id, directory)
