"""HTTP handlers: a signature, one call into a service, a return type."""

from fastapi import APIRouter

from tinsmith_train.routers import (
    accounts,
    auth,
    bootstrap,
    custom_losses,
    downloads,
    legacy,
    models,
    runs,
    sessions,
    training,
    watching,
    weights,
)


def api_router() -> APIRouter:
    """All routes below `/api/v1`."""
    router = APIRouter()
    modules = (
        bootstrap,
        auth,
        sessions,
        models,
        custom_losses,
        training,
        weights,
        downloads,
        runs,
        accounts,
        legacy,
        watching,
    )
    for module in modules:
        router.include_router(module.router)
    return router
