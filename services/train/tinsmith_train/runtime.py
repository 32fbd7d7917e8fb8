"""Everything of the train service that runs beside requests: Ray, backends, schedulers, maintenance."""

import asyncio
import threading
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta

import ray

from tinsmith_common.errors import EngineFailure
from tinsmith_common.observability import get_logger
from tinsmith_common.settings import SupportedModel
from tinsmith_common.stores import Stores
from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.backends.embedded import EmbeddedBackend, EmbeddedConfig
from tinsmith_train.config import TrainingConfig
from tinsmith_train.engine.types import ModelInfo, TrainerLimits
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.scheduler.scheduler import Pace, Scheduler
from tinsmith_train.services.container import Services
from tinsmith_train.services.failures import RESTARTED
from tinsmith_train.services.registry import BaseModel

_log = get_logger(__name__)


class Runtime:
    """Owns one backend and one scheduler per base model."""

    def __init__(
        self, config: TrainingConfig, stores: Stores, services: Services, metrics: SchedulerMetrics
    ) -> None:
        self._config = config
        self._stores = stores
        self._services = services
        self._metrics = metrics
        self._backends: list[TrainBackend] = []
        self._schedulers: list[Scheduler] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load every base model and begin to schedule. Raises `EngineFailure` with what to change."""
        await self._end_orphaned_promises()
        await asyncio.to_thread(_connect_ray, self._config)
        bases: dict[str, BaseModel] = {}
        for model in self._config.supported_models:
            bases[model.name] = await self._load(model)
        self._services.registry.bases = bases
        self._tasks.append(asyncio.create_task(self._maintain()))
        self._tasks.append(asyncio.create_task(self._services.history.run()))

    async def stop(self) -> None:
        """Stop scheduling, end what still waits, free the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._services.traces.stop()
        for scheduler in self._schedulers:
            await scheduler.fail_waiting(EngineFailure("the train service is shutting down"))
        await self._services.history.stop()
        for backend in self._backends:
            await backend.stop()

    async def _load(self, model: SupportedModel) -> BaseModel:
        config = self._config
        location = config.locate(model)
        backend = EmbeddedBackend(
            EmbeddedConfig(
                base_model=model.name,
                source=location,
                device=config.train_device,
                dtype=config.train_dtype,
                threads=config.train_threads,
                max_context_length=model.max_context_length,
                limits=TrainerLimits(
                    tokens_per_pass=config.tokens_per_pass, full_models=config.full_fine_tune_models
                ),
            )
        )
        self._backends.append(backend)
        info = await backend.start()
        scheduler = Scheduler(
            backend,
            self._stores.futures,
            self._metrics,
            _pace(config, info),
            self._services.failures.models_lost,
        )
        self._schedulers.append(scheduler)
        self._tasks.append(asyncio.create_task(scheduler.run()))
        _log.info("base model loaded", model=model.name, location=location, parameters=info.num_parameters)
        return BaseModel(model.name, model.tokenizer or location, info, scheduler)

    async def _end_orphaned_promises(self) -> None:
        """Work of an earlier process died with its memory: say so, instead of leaving clients to poll."""
        for promise in await self._stores.futures.pending():
            await self._stores.futures.fail(promise.request_id, RESTARTED, "server")
        await self._services.failures.service_restarted()

    async def _maintain(self) -> None:
        config = self._config
        while True:
            await asyncio.sleep(config.maintenance_interval_s)
            try:
                await self._services.sessions.close_silent(timedelta(seconds=config.session_timeout_s))
                await self._services.custom_losses.delete_expired()
                await self._services.checkpoints.delete_expired()
                await self._stores.futures.expire(timedelta(seconds=config.future_retention_s))
                oldest = datetime.now(UTC) - timedelta(seconds=config.trace_retention_s)
                await self._stores.futures.spans.expire(oldest)
                await self._stores.history.expire(
                    datetime.now(UTC) - timedelta(seconds=config.history_retention_s)
                )
                await self._services.traces.delete_old()
            except Exception:
                _log.exception("maintenance failed; trying again at its next turn")


def _pace(config: TrainingConfig, info: ModelInfo) -> Pace:
    cycle_tokens = config.tokens_per_cycle or info.row_tokens
    return Pace(min(cycle_tokens, info.row_tokens), cycle_tokens, config.lane_gap_s)


def _connect_ray(config: TrainingConfig) -> None:
    """Join the cluster at `RAY_ADDRESS`, or start one. Once per process: apps share Ray, but no actor."""
    if ray.is_initialized():
        return
    connected: Future[None] = Future()

    def stay_connected() -> None:
        try:
            ray.init(
                address=config.ray_address,
                namespace=config.ray_namespace,
                include_dashboard=False,
                configure_logging=False,
            )
        except BaseException as error:
            connected.set_exception(error)
            return
        connected.set_result(None)
        # The kernel ends Ray's processes with the thread that started them, so this one never ends.
        threading.Event().wait()

    threading.Thread(target=stay_connected, name="ray", daemon=True).start()
    try:
        connected.result()
    except (ConnectionError, RuntimeError) as error:
        where = config.ray_address or "a new local cluster"
        raise EngineFailure(f"cannot reach Ray at {where} (RAY_ADDRESS): {error}") from error
