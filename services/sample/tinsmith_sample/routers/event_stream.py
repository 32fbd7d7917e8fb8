"""Answers that go out while they are made, and work that ends when its client leaves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeAlias, TypeVar

from fastapi import Request
from fastapi.sse import format_sse_event
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
Json: TypeAlias = dict[str, Any]

KEEP_ALIVE_S = 15.0
"""Proxies cut streams that are silent; a request may wait for its first token for minutes."""


class EventStream(StreamingResponse):
    """Server-sent events from `events`. Whatever ends the answer, `held` is closed after it."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], held: AsyncExitStack) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache"})
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the client leaves."""
        async with self._held, aclosing(self._events):
            await super().__call__(scope, receive, send)


async def with_keep_alive(events: AsyncGenerator[bytes], keep_alive: bytes) -> AsyncGenerator[bytes]:
    """The same events, with something to send in every longer silence."""
    async with aclosing(events):
        while True:
            following = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait({following}, timeout=KEEP_ALIVE_S))[0]:
                    yield keep_alive
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.wait({following})
            event = following.result()
            if event is None:
                return
            yield event


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled when the client disconnects. Raises `ClientDisconnect` then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


def sse(data: Json | str, event: str | None = None) -> bytes:
    """One event on the wire."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=text, event=event)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
