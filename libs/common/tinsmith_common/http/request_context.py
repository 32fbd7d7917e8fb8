"""One id, one log line and one metric per request."""

import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinsmith_common.observability import HttpMetrics, get_logger, mark_received, request_scope

_ACCEPTABLE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_HEADER = b"x-request-id"


class RequestContext:
    """Takes the gateway's `x-request-id` (or makes one), binds it to the logs and returns it."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = get_logger("tinsmith.http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request inside its context."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        http_id = _request_id(scope)
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (_HEADER, http_id.encode())]
            await send(message)

        async def receive_and_mark() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                mark_received()
            return message

        start = time.perf_counter()
        with structlog.contextvars.bound_contextvars(http_id=http_id), request_scope():
            try:
                await self._app(scope, receive_and_mark, send_with_id)
            finally:
                self._finish(scope, status, time.perf_counter() - start)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's template, not the path: ids in labels would grow without bound.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.observe(scope["method"], route, status, seconds)
        emit = self._log.info if status >= 400 else self._log.debug
        emit("request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1e3, 1))


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == _HEADER and _ACCEPTABLE_ID.fullmatch(value):
            return value.decode()
    return uuid.uuid4().hex
