"""Turns a FastAPI app into a Tinsmith service: middleware, error answers, shared routers."""

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from tinsmith_common.auth.keys import client_key
from tinsmith_common.http.body_limit import BodyLimit
from tinsmith_common.http.errors import install_error_handlers
from tinsmith_common.http.futures_router import futures_router
from tinsmith_common.http.ops_router import ops_router
from tinsmith_common.http.request_context import RequestContext
from tinsmith_common.http.ui_router import ui_router
from tinsmith_common.observability import HttpMetrics, get_logger
from tinsmith_common.settings import DEFAULT_API_KEY, CommonSettings
from tinsmith_common.stores import Stores

API_PREFIX = "/api/v1"


def install_http(app: FastAPI, settings: CommonSettings, stores: Stores, registry: CollectorRegistry) -> None:
    """Put the shared state on `app.state` and the shared routes and middleware on `app`."""
    app.state.settings = settings
    app.state.stores = stores
    app.state.registry = registry
    app.state.ready = False
    app.state.give_up = None
    app.state.drain = None
    app.state.describe_wait = None
    install_error_handlers(app)
    app.include_router(ops_router)
    app.include_router(ui_router())
    app.include_router(futures_router, prefix=API_PREFIX)
    app.add_middleware(BodyLimit, limit_bytes=settings.max_body_bytes)
    # Added last, so outermost: an answer of the body limit is logged and counted too.
    app.add_middleware(RequestContext, metrics=HttpMetrics(registry))
    _warn_about_default_key(settings)


def _warn_about_default_key(settings: CommonSettings) -> None:
    if settings.tinker_api_key.get_secret_value() == DEFAULT_API_KEY:
        get_logger(__name__).warning(
            "INSECURE: the API key is the built-in default; set TINKER_API_KEY before anyone else can reach this",
            clients_send=client_key(DEFAULT_API_KEY),
        )
