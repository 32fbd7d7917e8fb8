"""`asample` and `cancel_future`."""

from fastapi import APIRouter

from tinsmith_common.http import Caller
from tinsmith_common.http.openapi import json_body
from tinsmith_common.wire.futures import CancelFutureRequest, Promise
from tinsmith_common.wire.sampling import SampleRequest
from tinsmith_sample.routers.dependencies import Body, SamplingDep

router = APIRouter(tags=["sampling"])


@router.post(
    "/asample",
    summary="Sample completions of a prompt",
    response_model_exclude_none=True,
    openapi_extra=json_body(SampleRequest),
)
async def asample(body: Body, caller: Caller, sampling: SamplingDep) -> Promise:
    """Answers a promise at once; the completions come through `retrieve_future`."""
    return await sampling.submit(caller.owner, body)


@router.post("/cancel_future", summary="Stop a sample nobody waits for", status_code=204)
async def cancel_future(body: CancelFutureRequest, caller: Caller, sampling: SamplingDep) -> None:
    """Unknown and finished requests are no error: a cancellation may cross the result."""
    await sampling.cancel(caller.owner, body.request_id)
