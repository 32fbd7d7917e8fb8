"""Health and metrics, for orchestrators and people. No credential needed."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

ops_router = APIRouter(tags=["operations"])


@ops_router.get("/healthz", summary="Is the process alive?")
@ops_router.get("/api/v1/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """Always ok while the event loop runs."""
    return {"status": "ok"}


@ops_router.get("/readyz", summary="Can it take work?", responses={503: {"description": "Not yet"}})
async def readyz(request: Request) -> Response:
    """503 until models and engines are loaded, and while they are down."""
    if request.app.state.ready:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "starting"}, status_code=503)


@ops_router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The app's registry in the Prometheus text format."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
