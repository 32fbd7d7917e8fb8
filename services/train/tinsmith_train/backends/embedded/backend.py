"""`TrainBackend` on one Ray actor. Ray must be initialised by whoever makes the backend."""

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from tinsmith_common.errors import EngineFailure, TinsmithError
from tinsmith_train.backends.base import EngineClock, WorkerLost
from tinsmith_train.backends.embedded.config import EmbeddedConfig
from tinsmith_train.backends.embedded.worker import TrainWorker
from tinsmith_train.engine.types import (
    AdamParams,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
    PassPart,
)


class EmbeddedBackend:
    """Serves one base model. After the worker has died, `start` gives a new one, without adapters.

    actor: Ray's handle of the worker, None when there is none.
    """

    def __init__(self, config: EmbeddedConfig) -> None:
        self._config = config
        self.actor: Any = None
        self.clock = EngineClock()

    async def start(self) -> ModelInfo:
        """Start the worker and load the base model. Raises `EngineFailure` with what to change."""
        await self.stop()
        self.actor = await asyncio.to_thread(_start_actor, self._config)
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                return await self._call("load")
        except TimeoutError as error:
            await self.stop()
            raise EngineFailure(
                f"the worker of '{self._config.base_model}' did not start in {self._config.start_timeout_s:.0f} s: "
                "check with `ray status` that its GPU or memory is free"
            ) from error
        except EngineFailure:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill the worker. Safe to call twice, and before `start`."""
        actor, self.actor = self.actor, None
        if actor is not None and ray.is_initialized():
            await asyncio.to_thread(ray.kill, actor)

    async def create_adapter(self, adapter_id: str, spec: LoraSpec) -> None:
        """See `TrainBackend`."""
        await self._call("create_adapter", adapter_id, spec)

    async def delete_adapter(self, adapter_id: str) -> None:
        """See `TrainBackend`."""
        await self._call("delete_adapter", adapter_id)

    async def forward_backward(
        self, parts: Sequence[PassPart]
    ) -> Sequence[ForwardBackwardResult | TinsmithError | None]:
        """See `TrainBackend`."""
        return await self._call("forward_backward", tuple(parts))

    async def optim_step(self, adapter_id: str, params: AdamParams) -> dict[str, float]:
        """See `TrainBackend`."""
        return await self._call("optim_step", adapter_id, params)

    async def save_state(self, adapter_id: str, directory: Path) -> None:
        """See `TrainBackend`."""
        await self._call("save_state", adapter_id, directory)

    async def load_state(self, adapter_id: str, directory: Path, *, with_optimizer: bool) -> LoraSpec:
        """See `TrainBackend`."""
        return await self._call("load_state", adapter_id, directory, with_optimizer)

    async def export_adapter(self, adapter_id: str, directory: Path) -> None:
        """See `TrainBackend`."""
        await self._call("export_adapter", adapter_id, directory)

    async def _call(self, method: str, *args: Any) -> Any:
        """Run a method of the worker; what it raises, and its death, come out as `TinsmithError`."""
        name = self._config.base_model
        if self.actor is None:
            raise EngineFailure(f"the training worker of '{name}' is not running: the server must start it")
        try:
            started, ended, value = await self.actor.call.remote(method, *args)
            self.clock.note(datetime.fromtimestamp(started, UTC), datetime.fromtimestamp(ended, UTC))
            return value
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, TinsmithError):
                raise cause from None
            raise EngineFailure(
                f"{method} failed in the training worker ({type(cause).__name__}: {cause})"
            ) from error
        except ActorUnavailableError as error:
            raise EngineFailure(f"the training worker of '{name}' cannot be reached: try again") from error
        except RayActorError as error:
            raise WorkerLost(
                f"the training worker of '{name}' died: what was not saved is lost; load the model from its last "
                "checkpoint"
            ) from error
        except RayError as error:
            raise EngineFailure(f"{method} was lost by Ray ({type(error).__name__}): try again") from error


def _start_actor(config: EmbeddedConfig) -> Any:
    wants_gpu = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    if config.device == "cuda" and not wants_gpu:
        raise EngineFailure("device is 'cuda' and Ray has no GPU: set it to 'cpu' or add a node with one")
    threads = config.threads or os.cpu_count() or 1
    options = ray.remote(
        # Threads are set, not scheduled: a worker must not wait for a CPU that Ray counts as taken.
        num_cpus=0,
        num_gpus=1 if wants_gpu else 0,
        max_restarts=0,
        # Waiting threads sleep: spinning ones cost ten times the wall clock when a neighbour needs the core.
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}},
    )
    return options(TrainWorker).remote(config)
