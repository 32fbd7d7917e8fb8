"""Saving and loading weights."""

from typing import Annotated

from fastapi import APIRouter, Header

from tinsmith_common.http.openapi import json_body
from tinsmith_common.wire.futures import Promise
from tinsmith_common.wire.training import OperationAddress
from tinsmith_common.wire.weights import (
    CopyWeightsRequest,
    CopyWeightsResponse,
    LoadWeightsRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
    WeightsInfoRequest,
    WeightsInfoResponse,
)
from tinsmith_train.routers.dependencies import Address, Body, Caller, ServicesDep

router = APIRouter(tags=["weights"])


@router.post(
    "/save_weights",
    response_model_exclude_none=True,
    summary="Submit a checkpoint",
    openapi_extra=json_body(SaveWeightsRequest),
)
async def save_weights(address: Address, body: Body, caller: Caller, services: ServicesDep) -> Promise:
    """Weights and optimizer state under a name."""
    return Promise(request_id=await services.weights.save(caller.owner, address, body))


@router.post(
    "/save_weights_for_sampler",
    response_model_exclude_none=True,
    summary="Submit weights for sampling",
    openapi_extra=json_body(SaveWeightsForSamplerRequest),
)
async def save_weights_for_sampler(
    address: Address, body: Body, caller: Caller, services: ServicesDep
) -> Promise:
    """Under a name, or as the snapshot of a new sampling session."""
    return Promise(request_id=await services.weights.save_for_sampler(caller.owner, address, body))


@router.post(
    "/save_weights_external",
    response_model_exclude_none=True,
    summary="Submit an export",
    openapi_extra=json_body(SaveWeightsExternalRequest),
)
async def save_weights_external(
    address: Address, body: Body, caller: Caller, services: ServicesDep
) -> Promise:
    """The adapter as files to download, encrypted if recipients are given."""
    return Promise(request_id=await services.weights.save_external(caller.owner, address, body))


@router.post("/load_weights", response_model_exclude_none=True, summary="Submit a load")
async def load_weights(body: LoadWeightsRequest, caller: Caller, services: ServicesDep) -> Promise:
    """Into a loaded model (`model_id`, `seq_id`), or as a new one (`session_id`, `model_seq_id`)."""
    if body.model_id is not None and body.seq_id is not None:
        address = OperationAddress(model_id=body.model_id, seq_id=body.seq_id)
        return Promise(request_id=await services.weights.load(caller.owner, address, body))
    return Promise(request_id=await services.models.create_from_checkpoint(caller.owner, body))


@router.post("/copy_weights", summary="Copy a checkpoint into a new run")
async def copy_weights(
    body: CopyWeightsRequest,
    caller: Caller,
    services: ServicesDep,
    x_idempotency_key: Annotated[str | None, Header()] = None,
    x_tinker_weights_access_token: Annotated[str | None, Header()] = None,
) -> CopyWeightsResponse:
    """One copy per idempotency key; the token is a credential of the account that owns the source."""
    path = await services.copies.copy(caller.owner, body, x_idempotency_key, x_tinker_weights_access_token)
    return CopyWeightsResponse(tinker_path=path)


@router.post("/weights_info", summary="What a checkpoint holds")
async def weights_info(
    body: WeightsInfoRequest, caller: Caller, services: ServicesDep
) -> WeightsInfoResponse:
    """Base model and shape of the adapter."""
    return await services.weights.info(caller.owner, body.tinker_path)
