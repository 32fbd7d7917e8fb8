"""The train service as an ASGI application.

`uvicorn tinsmith_train.api:app` serves one configured by the environment; `create_app(config)` makes as many
as a program wants, which share nothing.
"""

from collections.abc import AsyncGenerator
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
from tinsmith_train.config import TrainingConfig
from tinsmith_train.routers import api_router
from tinsmith_train.runtime import Runtime
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.services.container import Services


def create_app(config: TrainingConfig | None = None) -> FastAPI:
    """Wire configuration, stores, services and runtime onto `app.state`. Models load when it starts."""
    config = config or TrainingConfig()
    configure_logging(config.kgateway_log_level, json_lines=config.log_json)
    registry = CollectorRegistry()
    stores = Stores.build(config, "train", registry)
    metrics = SchedulerMetrics(registry)
    services = Services.build(config, stores, metrics)
    app = FastAPI(
        title="Tinsmith train service", lifespan=_lifespan, redirect_slashes=False, responses=PROBLEMS
    )
    install_http(app, config, stores, registry)
    app.include_router(api_router(), prefix=API_PREFIX)
    app.state.services = services
    app.state.describe_wait = services.registry.describe_wait
    app.state.runtime = Runtime(config, stores, services, metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    stores: Stores = app.state.stores
    runtime: Runtime = app.state.runtime
    try:
        try:
            await stores.open()
            await runtime.start()
            app.state.ready = True
        except TinsmithError as error:
            give_up(app, error)
        yield
    finally:
        app.state.ready = False
        await runtime.stop()
        await stores.close()


def __getattr__(name: str) -> Any:
    # Built when a server asks for it, so that importing this module has no effect.
    if name == "app":
        return create_app()
    raise AttributeError(name)
