"""A stand-in for either service, enough to see what arrives where: real HTTP, no model."""

import asyncio
import hashlib
import os
import sys
import time

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def _ready(request: Request) -> Response:
    return JSONResponse({"status": "ready"})


async def _poll(request: Request) -> Response:
    """Holds the request for as long as the query says, as a long poll does."""
    await asyncio.sleep(float(request.query_params.get("hold_s", "0")))
    return await _echo(request)


async def _echo(request: Request) -> Response:
    digest = hashlib.sha256()
    size = 0
    async for chunk in request.stream():
        digest.update(chunk)
        size += len(chunk)
    return JSONResponse(
        {
            "service": sys.argv[1],
            "path": request.scope["raw_path"].decode(),
            "query": request.url.query,
            "headers": dict(request.headers),
            "size": size,
            "sha256": digest.hexdigest(),
            "environment": {key: value for key, value in os.environ.items() if key.isupper()},
        }
    )


def _start_actor() -> None:
    """A worker of the stack's Ray, as the train service has."""
    import ray  # slow, and only the train stand-in of some tests needs it

    @ray.remote
    class Worker:
        def pid(self) -> int:
            return os.getpid()

    ray.init(address=os.environ["RAY_ADDRESS"], namespace=os.environ["RAY_NAMESPACE"])
    worker = Worker.options(num_cpus=0, name="worker", lifetime="detached").remote()
    pid = ray.get(worker.pid.remote())  # pyright: ignore[reportFunctionMemberAccess]
    print(f"actor {pid}", flush=True)


def main() -> None:
    """`standin.py NAME VARIABLE`, as a service whose address is in VARIABLE_HOST and VARIABLE_PORT."""
    _, name, variable = sys.argv
    host, port = os.environ[f"{variable}_HOST"], int(os.environ[f"{variable}_PORT"])
    methods = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(
        routes=[
            Route("/healthz", _ready),
            Route("/readyz", _ready),
            Route("/api/v1/retrieve_future", _poll, methods=methods),
            Route("/{path:path}", _echo, methods=methods),
        ]
    )
    print(f"{name} stand-in starts", flush=True)
    time.sleep(float(os.environ.get("STANDIN_START_S", "0")))
    if name in os.environ.get("STANDIN_ACTOR", ""):
        _start_actor()
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=75)


if __name__ == "__main__":
    main()
