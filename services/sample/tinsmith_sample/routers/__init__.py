"""HTTP handlers: a signature, one call into a service, a return type."""

from fastapi import APIRouter

from tinsmith_sample.routers import anthropic, legacy, openai, sampling, sessions, watching


def api_router() -> APIRouter:
    """All routes below `/api/v1`, besides the shared ones."""
    router = APIRouter()
    router.include_router(sessions.router)
    router.include_router(sampling.router)
    router.include_router(legacy.router)
    router.include_router(watching.router)
    return router


def inference_router() -> APIRouter:
    """The routes of other protocols, each below a prefix of its own."""
    router = APIRouter()
    router.include_router(openai.router)
    router.include_router(anthropic.router)
    return router
