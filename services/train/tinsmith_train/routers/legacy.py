"""The older surface: what clients before 0.25 ask for, on the services of today (docs/older-surface.md)."""

from email.utils import format_datetime
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tinsmith_common.wire.futures import Promise
from tinsmith_common.wire.legacy import CheckpointArchiveUrlResponse, TokenizerResponse, UnloadModelRequest
from tinsmith_train.routers.dependencies import Address, Body, Caller, ServicesDep

router = APIRouter(tags=["older surface"])


@router.post("/forward", response_model_exclude_none=True, summary="Submit a forward")
async def forward(address: Address, body: Body, caller: Caller, services: ServicesDep) -> Promise:
    """`forward_backward` as JSON, without gradients."""
    request_id = await services.training.forward_backward_json(caller.owner, address, body, forward_only=True)
    return Promise(request_id=request_id)


@router.post("/unload_model", response_model_exclude_none=True, summary="Free a model")
async def unload_model(body: UnloadModelRequest, caller: Caller, services: ServicesDep) -> Promise:
    """What was submitted runs first. Saved states stay, and so does the session."""
    return Promise(request_id=await services.models.unload(caller.owner, body.model_id))


@router.get("/get_tokenizer", summary="A model's tokenizer")
async def get_tokenizer(model_id: str, caller: Caller, services: ServicesDep) -> TokenizerResponse:
    """As files of its Hugging Face folder, for clients that cannot reach that."""
    return await services.tokenizers.of_model(caller.owner, model_id)


@router.get(
    "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}/archive",
    response_model=CheckpointArchiveUrlResponse,
    responses={302: {"description": "The same as `Location` and `Expires`, for `Accept: application/gzip`"}},
    summary="URL of a checkpoint as one archive",
)
async def archive_url(
    run_id: str,
    checkpoint_id: str,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """It needs no credential and expires."""
    archive = await services.archives.url(caller.owner, run_id, checkpoint_id, str(request.base_url))
    if "application/gzip" not in accept:
        return JSONResponse(archive.model_dump(mode="json"))
    expires = format_datetime(archive.expires, usegmt=True)
    return Response(status_code=302, headers={"Location": archive.url, "Expires": expires})


@router.get(
    "/checkpoint_archives/{run_id}/{checkpoint_id:path}",
    response_class=StreamingResponse,
    summary="A checkpoint as one archive",
)
async def archive(
    run_id: str, checkpoint_id: str, expires: int, signature: str, services: ServicesDep
) -> StreamingResponse:
    """A `tar.gz`, made while it is sent. The signature in the URL is the credential."""
    content = await services.archives.open(run_id, checkpoint_id, expires, signature)
    name = f"{checkpoint_id.replace('/', '-')}.tar.gz"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(content, media_type="application/gzip", headers=headers)
