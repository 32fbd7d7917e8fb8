"""Runs an app under uvicorn with what the protocol needs."""

import asyncio
import resource
import signal
import socket
from concurrent.futures import Future
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tinsmith_common.errors import TinsmithError
from tinsmith_common.observability import get_logger

# Heartbeats come every 10 s: uvicorn's 5 s would close every connection between two of them.
_KEEP_ALIVE_S = 120
_GRACE_S = 5
# A poll is a socket, and thousands may be held and may come at once; the kernel's own limits hold as well.
_OPEN_FILES = 65536
_BACKLOG = 8192


def give_up(app: FastAPI, error: TinsmithError) -> None:
    """End a service that cannot do its work: says why and stops its server. Without one, raises the error."""
    if app.state.give_up is None:
        raise error
    get_logger(__name__).critical(error.message)
    app.state.give_up()


def serve(app: FastAPI, host: str, port: int) -> int:
    """Serve until stopped. Answers the exit code: 1 when the app gave up or never started.

    `app.state.give_up` is what the app calls, after logging why, when it cannot do its work. On SIGTERM
    `app.state.drain`, if there is one, is awaited before the server stops; another signal stops it at once.
    """
    raise_open_files()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config, app)
    gave_up = False

    def give_up() -> None:
        nonlocal gave_up
        gave_up = server.should_exit = True

    app.state.give_up = give_up
    server.run()
    return 1 if gave_up or not server.started else 0


class _Server(uvicorn.Server):
    """Goes on serving while the app drains."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: Future[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; remembers the loop that signals are handed to."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain first, if this is the first SIGTERM and the app can."""
        ready = self.started and self._loop is not None and self._app.state.drain is not None
        if sig != signal.SIGTERM or not ready or self._draining is not None:
            super().handle_exit(sig, frame)
            return
        assert self._loop is not None
        self._draining = asyncio.run_coroutine_threadsafe(self._drain(sig, frame), self._loop)

    async def _drain(self, sig: int, frame: FrameType | None) -> None:
        try:
            await self._app.state.drain()
        except Exception:
            get_logger(__name__).exception("draining failed; stopping all the same")
        super().handle_exit(sig, frame)


def raise_open_files() -> None:
    """Allow this process as many open files as it may have: many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
