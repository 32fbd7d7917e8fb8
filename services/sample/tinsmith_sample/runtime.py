"""What runs beside requests: the engines, their supervision, and work left over from an earlier process."""

import asyncio
from collections.abc import Mapping

from fastapi import FastAPI

from tinsmith_common.errors import TinsmithError
from tinsmith_common.observability import get_logger
from tinsmith_sample.config import SamplingConfig
from tinsmith_sample.engines.base import SamplingEngine
from tinsmith_sample.engines.sglang import EngineConfig, SGLangEngine
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


class Runtime:
    """Starts the engines in the background: requests are accepted and polls are held from the first second."""

    def __init__(
        self, config: SamplingConfig, engines: Mapping[str, SamplingEngine], sampling: SamplingService
    ) -> None:
        self._config = config
        self._engines = engines
        self._sampling = sampling
        self._supervisor: asyncio.Task[None] | None = None

    def start(self, app: FastAPI) -> None:
        """Begin; `app.state.ready` follows the engines from now on."""
        self._supervisor = asyncio.create_task(self._supervise(app))

    async def stop(self) -> None:
        """End supervision and work, then the engines."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await self._sampling.stop()
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))

    async def _supervise(self, app: FastAPI) -> None:
        try:
            if resumed := await self._sampling.resume():
                _log.info("unfinished samples taken up again", count=resumed)
        except Exception:
            _log.exception("unfinished samples could not be taken up; the next start tries again")
        up_once = False
        while True:
            app.state.ready = await self._all_healthy()
            if not (app.state.ready or up_once) and app.state.give_up is not None:
                app.state.give_up()
            if app.state.ready and not up_once:
                up_once = True
                self._sampling.open()
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
