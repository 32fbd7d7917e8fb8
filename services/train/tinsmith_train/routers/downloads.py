"""Downloads of exported weights."""

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from tinsmith_common.wire.weights import ExternalWeightsUrlsResponse
from tinsmith_train.routers.dependencies import Caller, ServicesDep

router = APIRouter(tags=["downloads"])


@router.get(
    "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}/external_weights_urls",
    summary="URLs of an export's files",
)
async def external_weights_urls(
    run_id: str, checkpoint_id: str, request: Request, caller: Caller, services: ServicesDep
) -> ExternalWeightsUrlsResponse:
    """They need no credential and expire."""
    return await services.downloads.urls(caller.owner, run_id, checkpoint_id, str(request.base_url))


@router.get(
    "/external_weights/{run_id}/{name}/{file:path}",
    summary="A file of an export",
    response_class=FileResponse,
)
async def external_weights_file(
    run_id: str, name: str, file: str, expires: int, signature: str, services: ServicesDep
) -> FileResponse:
    """The signature in the URL is the credential."""
    path = await services.downloads.file(run_id, name, file, expires, signature)
    return FileResponse(path, media_type="application/octet-stream")
