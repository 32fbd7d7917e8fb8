"""Models."""

from fastapi import APIRouter

from tinsmith_common.wire.futures import Promise
from tinsmith_common.wire.training import CreateModelRequest, GetInfoRequest, GetInfoResponse
from tinsmith_train.routers.dependencies import Caller, ServicesDep

router = APIRouter(tags=["models"])


@router.post("/create_model", response_model_exclude_none=True, summary="Create a model with a fresh adapter")
async def create_model(body: CreateModelRequest, caller: Caller, services: ServicesDep) -> Promise:
    """The promise resolves with the model's id."""
    return Promise(request_id=await services.models.create(caller.owner, body))


@router.post("/get_info", response_model_exclude_none=True, summary="Facts of a model")
async def get_info(body: GetInfoRequest, caller: Caller, services: ServicesDep) -> GetInfoResponse:
    """Base model, tokenizer and rank."""
    return await services.models.info(caller.owner, body.model_id)
