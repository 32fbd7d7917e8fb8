"""Custom losses."""

from fastapi import APIRouter

from tinsmith_common.wire.custom_losses import CreateCustomLossRequest
from tinsmith_common.wire.futures import Promise
from tinsmith_train.routers.dependencies import Caller, ServicesDep

router = APIRouter(tags=["training"])


@router.post("/create_custom_loss", response_model_exclude_none=True, summary="Upload a loss")
async def create_custom_loss(body: CreateCustomLossRequest, caller: Caller, services: ServicesDep) -> Promise:
    """The promise resolves with the `loss_id` that `forward_backward` takes."""
    return Promise(request_id=await services.custom_losses.create(caller.owner, body))
