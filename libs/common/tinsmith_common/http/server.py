"""Runs an app under uvicorn with what the protocol needs."""

import resource

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

    `app.state.give_up` is what the app calls, after logging why, when it cannot do its work.
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
    server = uvicorn.Server(config)
    gave_up = False

    def give_up() -> None:
        nonlocal gave_up
        gave_up = server.should_exit = True

    app.state.give_up = give_up
    server.run()
    return 1 if gave_up or not server.started else 0


def raise_open_files() -> None:
    """Allow this process as many open files as it may have: many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
