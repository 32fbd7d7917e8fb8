"""The sample service as an ASGI application.

`uvicorn tinsmith_sample.api:app` serves one configured by the environment; `create_app(config)` makes as many
as a program wants, which share nothing.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from tinsmith_common.errors import TinsmithError
from tinsmith_common.http import give_up, install_http
from tinsmith_common.http.application import API_PREFIX
from tinsmith_common.http.openapi import PROBLEMS
from tinsmith_common.observability import configure_logging
from tinsmith_common.stores import Stores
from tinsmith_sample.config import SamplingConfig
from tinsmith_sample.engines.base import SamplingEngine
from tinsmith_sample.metrics import InferenceMetrics, SampleMetrics, TokenMetrics
from tinsmith_sample.routers import api_router, inference_router
from tinsmith_sample.runtime import Runtime, Working, build_engines
from tinsmith_sample.services.adapters import AdapterLocator
from tinsmith_sample.services.admission import Engines
from tinsmith_sample.services.direct import DirectSampling
from tinsmith_sample.services.inference.container import InferenceServices
from tinsmith_sample.services.inference.generation import Inference
from tinsmith_sample.services.inference.models import Models
from tinsmith_sample.services.inference.vocabulary import Vocabularies
from tinsmith_sample.services.replica import Replica, new_replica_id, place_of
from tinsmith_sample.services.sampling import QueueLimits, SamplingService
from tinsmith_sample.services.sessions import SamplingSessions
from tinsmith_sample.services.watching import ReplicaReporter, WatchService


def create_app(
    config: SamplingConfig | None = None, engines: Mapping[str, SamplingEngine] | None = None
) -> FastAPI:
    """Wire configuration, stores, services and engines onto `app.state`. Engines start when it starts.

    `engines`, by model name, take the place of those the configuration asks for.
    """
    config = config or SamplingConfig()
    configure_logging(config.kgateway_log_level, json_lines=config.log_json)
    registry = CollectorRegistry()
    holder = new_replica_id(config.sampling_host, config.sampling_port)
    stores = Stores.build(config, "sample", registry, holder)
    engines = Engines(build_engines(config) if engines is None else engines, config.max_running_samples)
    tokens = TokenMetrics(registry)
    metrics = SampleMetrics(
        registry, lambda: {name: engine.stats() for name, engine in engines.items()}, tokens
    )
    sessions = SamplingSessions(stores.catalog, frozenset(engines))
    adapters = AdapterLocator(stores.catalog, stores.checkpoints)
    sampling = SamplingService(
        stores.futures,
        sessions,
        adapters,
        engines,
        metrics,
        QueueLimits(config.max_queued_samples, int(config.max_queued_mib * 2**20)),
    )
    inference = Inference(
        engines, stores.catalog.usage, InferenceMetrics(registry, tokens), config.max_queued_samples
    )
    app = FastAPI(
        title="Tinsmith sample service", lifespan=_lifespan, redirect_slashes=False, responses=PROBLEMS
    )
    install_http(app, config, stores, registry)
    app.include_router(api_router(), prefix=API_PREFIX)
    app.include_router(inference_router())
    app.state.sessions = sessions
    app.state.sampling = sampling
    app.state.inference = InferenceServices.build(
        Models(stores.catalog, sessions, adapters, tuple(engines)),
        Vocabularies({model.name: config.locate(model) for model in config.supported_models}),
        inference,
    )
    app.state.direct = DirectSampling(sessions, sampling, stores.futures)
    replica = Replica(stores.futures, sampling, config.replica_timeout_s)
    app.state.runtime = runtime = Runtime(config, engines, Working(sampling, inference, replica))
    app.state.drain = lambda: _drain(app, runtime, stores)
    app.state.describe_wait = sampling.describe_wait
    app.state.watching = WatchService(stores)
    app.state.reporter = ReplicaReporter(place_of(holder), stores, engines, registry, lambda: app.state.ready)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    stores: Stores = app.state.stores
    runtime: Runtime = app.state.runtime
    reporter: ReplicaReporter = app.state.reporter
    try:
        try:
            await stores.open()
            await runtime.start(app)
            reporter.start()
        except TinsmithError as error:
            give_up(app, error)
        yield
    finally:
        app.state.ready = False
        await reporter.stop()
        await runtime.stop()
        await stores.close()


async def _drain(app: FastAPI, runtime: Runtime, stores: Stores) -> None:
    await runtime.drain(app)
    stores.futures.stop_waiting()


def __getattr__(name: str) -> Any:
    # Built when a server asks for it, so that importing this module has no effect.
    if name == "app":
        return create_app()
    raise AttributeError(name)
