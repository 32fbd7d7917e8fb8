"""The older surface: sampling with one request and its answer (docs/older-surface.md)."""

from typing import Annotated

from fastapi import APIRouter, Header, Response

from tinsmith_common.http import Caller
from tinsmith_common.wire.legacy import (
    CreateSamplingClientRequest,
    CreateSamplingClientResponse,
    SampleResponse,
)
from tinsmith_sample.routers.dependencies import Body, DirectDep

router = APIRouter(tags=["older surface"])


@router.post("/create_sampling_client", summary="Sample from a base model or from saved weights")
async def create_sampling_client(
    body: CreateSamplingClientRequest, caller: Caller, direct: DirectDep
) -> CreateSamplingClientResponse:
    """In a session as `create_sampling_session` does, or without one."""
    return CreateSamplingClientResponse(sampling_session_id=await direct.create(caller.owner, body))


@router.post(
    "/sample",
    response_model=SampleResponse,
    response_model_exclude_none=True,
    summary="Sample completions of a prompt and wait for them",
)
async def sample(
    body: Body, caller: Caller, direct: DirectDep, accept: Annotated[str, Header()] = ""
) -> Response:
    """An `asample` body, which may name a `base_model` or `model_path` instead of a sampling session."""
    payload, media_type = await direct.sample(caller.owner, body, accept)
    return Response(payload, media_type=media_type)
