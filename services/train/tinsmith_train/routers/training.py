"""forward_backward and optim_step. Both answer at once; the work is done in the model's lane."""

from fastapi import APIRouter

from tinsmith_common.futures import JSON
from tinsmith_common.http.openapi import PROTOBUF_BODY, json_body
from tinsmith_common.wire.futures import Promise
from tinsmith_common.wire.training import OptimStepRequest
from tinsmith_train.routers.dependencies import (
    Address,
    Body,
    BodyKind,
    Caller,
    ServicesDep,
    get_address,
)

router = APIRouter(tags=["training"])


@router.post(
    "/forward_backward",
    response_model_exclude_none=True,
    summary="Submit a forward (and backward)",
    openapi_extra=PROTOBUF_BODY,
)
async def forward_backward(body: Body, kind: BodyKind, caller: Caller, services: ServicesDep) -> Promise:
    """The body is a protobuf `ForwardBackwardRequest`, or JSON from older clients."""
    if kind == JSON:
        address = get_address(body)
        request_id = await services.training.forward_backward_json(
            caller.owner, address, body, forward_only=False
        )
    else:
        request_id = await services.training.forward_backward(caller.owner, body)
    return Promise(request_id=request_id)


@router.post(
    "/optim_step",
    response_model_exclude_none=True,
    summary="Submit an optimizer step",
    openapi_extra=json_body(OptimStepRequest),
)
async def optim_step(address: Address, body: Body, caller: Caller, services: ServicesDep) -> Promise:
    """AdamW with the parameters of the body."""
    return Promise(request_id=await services.training.optim_step(caller.owner, address, body))
