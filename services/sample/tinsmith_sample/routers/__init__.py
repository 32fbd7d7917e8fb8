"""HTTP handlers: a signature, one call into a service, a return type."""

from fastapi import APIRouter

from tinsmith_sample.routers import legacy, sampling, sessions


def api_router() -> APIRouter:
    """All routes below `/api/v1`, besides the shared ones."""
    router = APIRouter()
    router.include_router(sessions.router)
    router.include_router(sampling.router)
    router.include_router(legacy.router)
    return router
