"""What runs beside requests: the engines, their supervision, and this process's part among its replicas."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI

from tinsmith_common.errors import TinsmithError
from tinsmith_common.observability import get_logger
from tinsmith_sample.config import SamplingConfig
from tinsmith_sample.engines.base import SamplingEngine
from tinsmith_sample.engines.sglang import EngineConfig, SGLangEngine
from tinsmith_sample.services.inference.generation import Inference
from tinsmith_sample.services.replica import Replica
from tinsmith_sample.services.sampling import SamplingService

_log = get_logger(__name__)


def build_engines(config: SamplingConfig) -> dict[str, SGLangEngine]:
    """One engine per supported model, not started."""
    return {
        model.name: SGLangEngine(
            EngineConfig(
                model_path=config.locate(model),
                context_length=model.max_context_length,
                device=config.sampling_device,
                threads=config.sampling_threads,
                max_lora_rank=config.max_lora_rank,
                max_resident_adapters=config.max_resident_adapters,
                adapters_per_batch=config.adapters_per_batch,
                max_prompt_scores=config.max_prompt_scores,
                unload_timeout_s=config.adapter_unload_timeout_s,
                start_timeout_s=config.engine_start_timeout_s,
                engine_args=config.sampling_engine_args,
            )
        )
        for model in config.supported_models
    }


@dataclass(frozen=True)
class Working:
    """What uses the engines, and this process's part among those that sample on the same store."""

    sampling: SamplingService
    inference: Inference
    replica: Replica


class Runtime:
    """Starts the engines in the background: requests are accepted and polls are held from the first second."""

    def __init__(
        self, config: SamplingConfig, engines: Mapping[str, SamplingEngine], working: Working
    ) -> None:
        self._config = config
        self._engines = engines
        self._working = working
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False

    async def start(self, app: FastAPI) -> None:
        """Begin; `app.state.ready` follows the engines from now on."""
        try:
            await self._working.replica.join()
        except Exception:
            _log.exception("unfinished samples could not be taken up; the first heartbeat tries again")
        self._tasks = [
            asyncio.create_task(self._supervise(app)),
            asyncio.create_task(self._working.replica.run()),
        ]

    async def drain(self, app: FastAPI) -> None:
        """Take no more work, finish within the grace period what runs, and hand back the rest."""
        self._draining, app.state.ready = True, False
        self._working.replica.retire()
        grace_s = self._config.drain_grace_s
        await asyncio.gather(self._working.sampling.drain(grace_s), self._working.inference.drain(grace_s))
        await self._end_work()

    async def stop(self) -> None:
        """End supervision and work, then the engines."""
        await self._end_work()
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))

    async def _end_work(self) -> None:
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._working.sampling.stop()
        await self._working.replica.leave()

    async def _supervise(self, app: FastAPI) -> None:
        up_once = False
        while True:
            app.state.ready = await self._all_healthy() and not self._draining
            if not (app.state.ready or up_once or self._draining) and app.state.give_up is not None:
                app.state.give_up()
            if app.state.ready and not up_once:
                up_once = True
                self._working.sampling.open()
                _log.info("engines ready", models=list(self._engines))
            await asyncio.sleep(self._config.engine_check_interval_s)

    async def _all_healthy(self) -> bool:
        """Whether every engine answers. One that has ended is started again."""
        try:
            # One after the other: starting is mostly imports and file reads, which compete for the same cores.
            for engine in self._engines.values():
                await engine.start()
            return all([await engine.healthy() for engine in self._engines.values()])
        except TinsmithError as error:
            _log.error("an engine is down", reason=error.message)
        except Exception:
            _log.exception("an engine could not be looked after")
        return False
