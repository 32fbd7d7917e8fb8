"""`retrieve_future` and `retrieve_futures`, mounted by both services on the same store."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse

from tinsmith_common.futures import Completion, QueueState, completion_queue
from tinsmith_common.http.dependencies import Caller, SharedSettings, SharedStores
from tinsmith_common.http.legacy import negotiate
from tinsmith_common.http.openapi import POLL_ANSWERS
from tinsmith_common.wire.futures import (
    CompleteMetadata,
    FailedCompletion,
    FailedFuture,
    FinishedCompletion,
    RetrieveFutureRequest,
    RetrieveFuturesRequest,
    RetrieveFuturesResponse,
    TryAgain,
)

futures_router = APIRouter(tags=["futures"])


@futures_router.post("/retrieve_future", summary="Long-poll one promise", responses=POLL_ANSWERS)
async def retrieve_future(
    body: RetrieveFutureRequest,
    request: Request,
    caller: Caller,
    stores: SharedStores,
    settings: SharedSettings,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Answer the result as soon as there is one, or `try_again` after the long-poll time.

    Results of passes and samples are protobuf for clients that name it in `Accept`, and JSON for all others.
    """
    outcome = await stores.futures.wait(body.request_id, caller.owner, settings.long_poll_s)
    if outcome is None:
        return _try_again(body.request_id, _queue_state(request, body.request_id))
    if outcome.error is not None:
        # A failed operation is a 200: the SDK would poll a 5xx for ever.
        return JSONResponse(FailedFuture(error=outcome.error, category=outcome.category).model_dump())
    payload, media_type = await negotiate(outcome, accept)
    if body.allow_metadata_only and len(payload) > settings.metadata_only_over_bytes:
        return JSONResponse(CompleteMetadata(response_payload_size=len(payload)).model_dump())
    return Response(payload, media_type=media_type)


@futures_router.post("/retrieve_futures", summary="Long-poll all samples of one sampling client")
async def retrieve_futures(
    body: RetrieveFuturesRequest, caller: Caller, stores: SharedStores, settings: SharedSettings
) -> RetrieveFuturesResponse:
    """Answer what ended after the cursor as soon as there is something, and drop what was acknowledged."""
    queue = completion_queue(body.target.sampling_session_id, body.target.cloned_sampler_id)
    if body.retrieved_request_ids:
        await stores.futures.acknowledge(queue, caller.owner, body.retrieved_request_ids)
    hold_s = settings.long_poll_s if body.timeout is None else min(body.timeout, settings.long_poll_s)
    batch = await stores.futures.completions.wait(queue, caller.owner, body.prev_cursor, hold_s)
    return RetrieveFuturesResponse(completions=list(map(_to_wire, batch.completions)), cursor=batch.cursor)


def _queue_state(request: Request, request_id: str) -> QueueState:
    """What the work waits for: the engine, or what the service's `describe_wait` tells."""
    if not request.app.state.ready:
        reason = "the engine is starting; the request is kept and runs as soon as it is up"
        return QueueState("paused_capacity", reason)
    describe: Callable[[str], QueueState | None] | None = request.app.state.describe_wait
    return (describe(request_id) if describe else None) or QueueState()


def _try_again(request_id: str, queue: QueueState) -> Response:
    again = TryAgain(request_id=request_id, queue_state=queue.state, queue_state_reason=queue.reason)
    return JSONResponse(again.model_dump(exclude_none=True))


def _to_wire(completion: Completion) -> FinishedCompletion | FailedCompletion:
    if completion.payload_bytes is None:
        return FailedCompletion(request_id=completion.request_id)
    return FinishedCompletion(
        request_id=completion.request_id, response_payload_uncompressed_size=completion.payload_bytes
    )
