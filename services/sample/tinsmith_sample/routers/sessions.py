"""Sampling sessions."""

from fastapi import APIRouter

from tinsmith_common.http import Caller
from tinsmith_common.wire.sampling import (
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    JoinSamplingSessionRequest,
    JoinSamplingSessionResponse,
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


@router.post("/join_sampling_session", summary="A number for a client's copy in another process")
async def join_sampling_session(
    body: JoinSamplingSessionRequest, caller: Caller, sessions: SessionsDep
) -> JoinSamplingSessionResponse:
    """Numbers begin at 1 and are never given twice, so that copies never use the same `seq_id`."""
    client_counter = await sessions.join(caller.owner, body.sampling_session_id)
    return JoinSamplingSessionResponse(client_counter=client_counter)


@router.get(
    "/samplers/{sampling_session_id}",
    summary="What a sampling session samples from",
    response_model_exclude_none=True,
)
async def get_sampler(sampling_session_id: str, caller: Caller, sessions: SessionsDep) -> SamplerResponse:
    """Base model and, where there are any, weights."""
    return await sessions.describe(caller.owner, sampling_session_id)
