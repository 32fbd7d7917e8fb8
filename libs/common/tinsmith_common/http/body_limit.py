"""Refuses bodies over a limit without ever holding one."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DRAIN_FACTOR = 8
"""A refused body is read and dropped up to this many times the limit, because most clients only look at the
answer once they have sent everything; beyond it the connection is closed."""


class BodyLimit:
    """Answers 413 to a body over `limit_bytes`, announced or found out while it streams in."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _announced_length(scope) > self._limit:
            await self._refuse(scope, receive, send, seen=0)
            return
        messages, size, more = list[Message](), 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client is gone
            messages.append(message)
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > self._limit:
                messages.clear()
                await self._refuse(scope, receive, send, seen=size, more=more)
                return
        replay = iter(messages)

        async def receive_again() -> Message:
            return next(replay, None) or await receive()

        await self._app(scope, receive_again, send)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, *, seen: int, more: bool = True
    ) -> None:
        while more and seen <= self._limit * _DRAIN_FACTOR:
            message = await receive()
            if message["type"] != "http.request":
                return
            seen += len(message.get("body", b""))
            more = message.get("more_body", False)
        detail = (
            f"the body is larger than {self._limit / 2**20:g} MiB; send fewer datums per request, "
            "or raise MAX_BODY_MIB on the server"
        )
        response = JSONResponse({"detail": detail}, status_code=413, headers={"connection": "close"})
        await response(scope, receive, send)


def _announced_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
