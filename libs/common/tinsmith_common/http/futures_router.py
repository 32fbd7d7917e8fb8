"""`retrieve_future`, mounted by both services on the same store."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from tinsmith_common.futures import Outcome
from tinsmith_common.http.dependencies import Caller, SharedSettings, SharedStores
from tinsmith_common.wire.futures import FailedFuture, RetrieveFutureRequest, TryAgain

futures_router = APIRouter(tags=["futures"])


@futures_router.post("/retrieve_future", summary="Long-poll one promise")
async def retrieve_future(
    body: RetrieveFutureRequest, caller: Caller, stores: SharedStores, settings: SharedSettings
) -> Response:
    """Answer the result as soon as there is one, or `try_again` after the long-poll time."""
    outcome = await stores.futures.wait(body.request_id, caller.owner, settings.long_poll_s)
    if outcome is None:
        return JSONResponse(TryAgain(request_id=body.request_id).model_dump(exclude_none=True))
    return _answer(outcome)


def _answer(outcome: Outcome) -> Response:
    if outcome.error is not None:
        # A failed operation is a 200: the SDK would poll a 5xx for ever.
        return JSONResponse(FailedFuture(error=outcome.error, category=outcome.category).model_dump())
    return Response(outcome.payload, media_type=outcome.media_type)
