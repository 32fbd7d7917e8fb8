"""HTTP handlers: a signature, one call into a service, a return type."""

from fastapi import APIRouter

from tinsmith_train.routers import accounts, bootstrap, downloads, models, runs, sessions, training, weights


def api_router() -> APIRouter:
    """All routes below `/api/v1`."""
    router = APIRouter()
    for module in (bootstrap, sessions, models, training, weights, downloads, runs, accounts):
        router.include_router(module.router)
    return router
