"""The Anthropic protocol, below `/anthropic/api`, which is a client's base URL."""

from typing import Any

from fastapi import APIRouter, Request, Response

from tinsmith_common.errors import NotFound, TinsmithError
from tinsmith_common.http import Caller
from tinsmith_common.wire.anthropic import CountTokensRequest, MessagesRequest
from tinsmith_sample.routers.dependencies import InferenceDep
from tinsmith_sample.routers.dialect import REFUSALS, WHOLE_OR_STREAMED, Dialect
from tinsmith_sample.routers.event_stream import Json, sse
from tinsmith_sample.services.inference.models import Entry

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


class AnthropicDialect(Dialect):
    """Events named by their type."""

    keep_alive = sse({"type": "ping"}, "ping")

    def event(self, event: Json) -> bytes:
        """One event."""
        return sse(event, event["type"])

    def error(self, error: TinsmithError) -> Json:
        """What the client makes its exception of."""
        status = error.http_status
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}


_dialect = AnthropicDialect()
router = APIRouter(
    prefix="/anthropic/api/v1", tags=["anthropic"], route_class=_dialect.route_class(), responses=REFUSALS
)


@router.post("/messages", summary="Answer a conversation", response_model=None, responses=WHOLE_OR_STREAMED)
async def messages(
    body: MessagesRequest, request: Request, caller: Caller, inference: InferenceDep
) -> Response:
    """In the model's own chat template; whole, or as server-sent events with `stream`."""
    answer = await inference.anthropic.message(caller.owner, body)
    return await _dialect.answer(request, inference.inference, answer, bool(body.stream))


@router.post("/messages/count_tokens", summary="How long a conversation is")
async def count_tokens(body: CountTokensRequest, caller: Caller, inference: InferenceDep) -> Json:
    """With all that the chat template adds."""
    return {"input_tokens": await inference.anthropic.count_tokens(caller.owner, body)}


@router.get("/models", summary="Base models and the caller's sampler weights")
async def list_models(caller: Caller, inference: InferenceDep) -> Json:
    """All of them in one page."""
    data = [_model(item) for item in await inference.models.list(caller.owner)]
    return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}


@router.get("/models/{name:path}", summary="One model")
async def get_model(name: str, caller: Caller, inference: InferenceDep) -> Json:
    """Published weights of others are found too."""
    return _model(await inference.models.describe(caller.owner, name))


@router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
async def nothing_here(path: str, request: Request) -> Any:
    """The client of the protocol expects its own errors."""
    raise NotFound(f"{request.method} /{path} is not offered here; see docs/inference.md")


def _model(entry: Entry) -> Json:
    created = entry.created_at.isoformat()
    return {"type": "model", "id": entry.name, "display_name": entry.name, "created_at": created}
