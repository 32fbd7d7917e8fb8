"""The OpenAI protocol, below `/oai/api/v1`."""

from typing import Any

from fastapi import APIRouter, Request, Response

from tinsmith_common.errors import NotFound, TinsmithError
from tinsmith_common.http import Caller
from tinsmith_common.wire.openai import ChatCompletionRequest, CompletionRequest
from tinsmith_sample.routers.dependencies import InferenceDep
from tinsmith_sample.routers.dialect import REFUSALS, WHOLE_OR_STREAMED, Dialect
from tinsmith_sample.routers.event_stream import Json, sse
from tinsmith_sample.services.inference.models import Entry

_TYPES = {429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class OpenAIDialect(Dialect):
    """Unnamed events, the last of them `[DONE]`."""

    keep_alive = b": keep-alive\n\n"
    end = sse("[DONE]")

    def event(self, event: Json) -> bytes:
        """One chunk."""
        return sse(event)

    def error(self, error: TinsmithError) -> Json:
        """What the client makes its exception of."""
        status = error.http_status
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        return {
            "error": {
                "message": error.message,
                "type": kind,
                "param": getattr(error, "param", None),
                "code": getattr(error, "code", None) or _CODES.get(status),
            }
        }


_dialect = OpenAIDialect()
router = APIRouter(
    prefix="/oai/api/v1", tags=["openai"], route_class=_dialect.route_class(), responses=REFUSALS
)


@router.get("/models", summary="Base models and the caller's sampler weights")
async def list_models(caller: Caller, inference: InferenceDep) -> Json:
    """All of them in one page."""
    return {"object": "list", "data": [_model(item) for item in await inference.models.list(caller.owner)]}


@router.get("/models/{name:path}", summary="One model")
async def get_model(name: str, caller: Caller, inference: InferenceDep) -> Json:
    """Published weights of others are found too."""
    return _model(await inference.models.describe(caller.owner, name))


@router.post(
    "/completions",
    summary="Go on with a text or with tokens",
    response_model=None,
    responses=WHOLE_OR_STREAMED,
)
async def completions(
    body: CompletionRequest, request: Request, caller: Caller, inference: InferenceDep
) -> Response:
    """Whole, or as server-sent events with `stream`."""
    answer = await inference.openai.completion(caller.owner, body)
    return await _dialect.answer(request, inference.inference, answer, bool(body.stream))


@router.post(
    "/chat/completions", summary="Go on with a conversation", response_model=None, responses=WHOLE_OR_STREAMED
)
async def chat_completions(
    body: ChatCompletionRequest, request: Request, caller: Caller, inference: InferenceDep
) -> Response:
    """In the model's own chat template; whole, or as server-sent events with `stream`."""
    answer = await inference.openai.chat(caller.owner, body)
    return await _dialect.answer(request, inference.inference, answer, bool(body.stream))


@router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
async def nothing_here(path: str, request: Request) -> Any:
    """The client of the protocol expects its own errors."""
    raise NotFound(f"{request.method} /{path} is not offered here; see docs/inference.md")


def _model(entry: Entry) -> Json:
    created = int(entry.created_at.timestamp())
    return {"id": entry.name, "object": "model", "created": created, "owned_by": "tinsmith"}
