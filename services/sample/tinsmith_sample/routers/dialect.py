"""What the two inference protocols do alike: answer whole or as a stream, and fail in a shape of their own."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tinsmith_common.errors import InvalidInput, TinsmithError
from tinsmith_common.http.errors import describe_validation, error_headers
from tinsmith_common.observability import get_logger
from tinsmith_sample.routers.event_stream import EventStream, Json, unless_gone, with_keep_alive
from tinsmith_sample.services.inference.errors import WrongParameter
from tinsmith_sample.services.inference.generation import Generation, Inference, Stream, Work

_log = get_logger(__name__)

_CLIENT_GONE = 499


class Refusal(BaseModel):
    """Why a request was refused, in a protocol's own words below `error`."""

    error: dict[str, Any]


REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Refusal, "description": "Refused"}}
"""For the `responses` of a protocol's router."""

WHOLE_OR_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or its events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}
"""For the `responses` of a route that can do both."""


class Answer(Protocol):
    """See `OpenAI` and `Anthropic`."""

    @property
    def work(self) -> Work:
        """What must be done for it."""
        ...

    def whole(self, generation: Generation) -> Json:
        """The answer in one piece."""
        ...

    def events(self, stream: Stream) -> AsyncGenerator[Json]:
        """The answer as it is made."""
        ...


class Dialect(ABC):
    """How a protocol writes its events and its errors."""

    keep_alive: bytes
    end: bytes = b""

    @abstractmethod
    def event(self, event: Json) -> bytes:
        """One event on the wire."""

    @abstractmethod
    def error(self, error: TinsmithError) -> Json:
        """The body of a failure, which is also the last event of a stream that fails."""

    async def answer(self, request: Request, inference: Inference, answer: Answer, stream: bool) -> Response:
        """Do the work of an answer and send it."""
        if not stream:
            generation = await unless_gone(request, inference.complete(answer.work))
            return JSONResponse(answer.whole(generation))
        held = AsyncExitStack()
        events = answer.events(await held.enter_async_context(inference.stream(answer.work)))
        return EventStream(with_keep_alive(self._written(events), self.keep_alive), held)

    def failed(self, error: TinsmithError) -> JSONResponse:
        """The answer to a request that failed."""
        return JSONResponse(self.error(error), status_code=error.http_status, headers=error_headers(error))

    def route_class(self) -> type[APIRoute]:
        """Routes whose failures look as this protocol has them."""
        dialect = self

        class Route(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def handle_in_dialect(request: Request) -> Response:
                    try:
                        return await handle(request)
                    except ClientDisconnect:
                        return Response(status_code=_CLIENT_GONE)
                    except Exception as error:
                        return dialect.failed(_understood(error))

                return handle_in_dialect

        return Route

    async def _written(self, events: AsyncGenerator[Json]) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(events):
                async for event in events:
                    yield self.event(event)
        except Exception as error:
            yield self.event(self.error(_understood(error)))
        else:
            if self.end:
                yield self.end


def _understood(error: Exception) -> TinsmithError:
    """The error itself, or what a client can be told of one that nobody foresaw."""
    if isinstance(error, TinsmithError):
        return error
    if isinstance(error, RequestValidationError):
        problem, where = describe_validation(error), error.errors()[0]["loc"]
        return WrongParameter(problem, str(where[1])) if len(where) > 1 else InvalidInput(problem)
    if isinstance(error, HTTPException) and error.status_code < 500:
        return InvalidInput(str(error.detail))
    _log.error("unexpected error", exc_info=error)
    return TinsmithError(f"internal error ({type(error).__name__}); the server's log has the details")
