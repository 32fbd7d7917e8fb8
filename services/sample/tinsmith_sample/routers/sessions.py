"""Sampling sessions."""

from fastapi import APIRouter

from tinsmith_common.http import Caller
from tinsmith_common.wire.sampling import (
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    SamplerResponse,
)
from tinsmith_sample.routers.dependencies import SessionsDep

router = APIRouter(tags=["sampling"])


@router.post("/create_sampling_session", summary="Sample from a base model or from saved weights")
async def create_sampling_session(
    body: CreateSamplingSessionRequest, caller: Caller, sessions: SessionsDep
) -> CreateSamplingSessionResponse:
    """Answers at once; weights are loaded at the first sample."""
    sampling_session_id = await sessions.create(caller.owner, body)
    return CreateSamplingSessionResponse(sampling_session_id=sampling_session_id)


@router.get(
    "/samplers/{sampling_session_id}",
    summary="What a sampling session samples from",
    response_model_exclude_none=True,
)
async def get_sampler(sampling_session_id: str, caller: Caller, sessions: SessionsDep) -> SamplerResponse:
    """Base model and, where there are any, weights."""
    return await sessions.describe(caller.owner, sampling_session_id)
