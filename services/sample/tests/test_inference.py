"""The inference routes in front of an engine that fails, hangs or is full, as a real one rarely is."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import httpx
import pytest

from tinsmith_common.errors import EngineFailure
from tinsmith_sample.engines.base import EngineLost, SamplingEngine
from tinsmith_sample.routers import event_stream

pytestmark = pytest.mark.slow  # imports transformers

MODEL = "tinsmith/tiny"
OPENAI = "/oai/api/v1/completions"
ANTHROPIC = "/anthropic/api/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    OPENAI: {"model": MODEL, "prompt": [5, 6, 7]},
    ANTHROPIC: {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]},
}

Serve = Callable[[SamplingEngine], AbstractAsyncContextManager[Any]]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    return answer.json()["error"]


async def figures(service: Any) -> list[str]:
    return (await service.http.get("/metrics")).text.splitlines()


@pytest.mark.parametrize(("route", "kind"), [(OPENAI, "server_error"), (ANTHROPIC, "api_error")])
async def test_a_failure_of_the_engine_is_a_500_in_the_protocols_shape(
    serve: Serve, fake_engine: Any, route: str, kind: str
) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [EngineFailure("out of memory"), RuntimeError("secret")]
    async with serve(fake_engine) as service:
        known = await service.http.post(route, json=BODIES[route])
        unknown = await service.http.post(route, json=BODIES[route])
    assert (known.status_code, error_of(known)["message"], error_of(known)["type"]) == (
        500,
        "out of memory",
        kind,
    )
    assert unknown.status_code == 500
    assert "secret" not in unknown.text


@pytest.mark.parametrize(("route", "last"), [(OPENAI, "data: "), (ANTHROPIC, "event: error\ndata: ")])
async def test_a_stream_that_fails_says_so_in_its_last_event(
    serve: Serve, fake_engine: Any, route: str, last: str
) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [EngineFailure("out of memory")]
    async with serve(fake_engine) as service:
        answer = await service.http.post(route, json=BODIES[route] | {"stream": True})
        metrics = await figures(service)
    events = answer.text.strip().split("\n\n")
    assert answer.status_code == 200
    assert events[-1].startswith(last)
    assert json.loads(events[-1].removeprefix(last))["error"]["message"] == "out of memory"
    assert len(events) > 1, "the token before the failure was told"
    protocol = "openai" if route == OPENAI else "anthropic"
    labels = f'{{model="{MODEL}",outcome="server",protocol="{protocol}"}}'
    assert f"tinsmith_inference_requests_total{labels} 1.0" in metrics
    assert f'tinsmith_inference_tokens_total{{model="{MODEL}"}} 1.0' in metrics


async def test_work_that_a_dying_engine_took_along_is_done_again(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [EngineLost("gone")]
    async with serve(fake_engine) as service:
        answer = await service.http.post(OPENAI, json=BODIES[OPENAI])
    assert answer.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(("route", "kind"), [(OPENAI, "rate_limit_error"), (ANTHROPIC, "rate_limit_error")])
async def test_more_requests_than_the_limit_get_a_429(
    serve: Serve, fake_engine: Any, route: str, kind: str
) -> None:
    async with serve(fake_engine) as service:
        waiting = [asyncio.create_task(service.http.post(route, json=BODIES[route])) for _ in range(50)]
        while fake_engine.running < 50:  # noqa: ASYNC110  (it has no event)
            await asyncio.sleep(0)
        refused = await service.http.post(route, json=BODIES[route])
        fake_engine.gate.set()
        answers = await asyncio.gather(*waiting)
        afterwards = await service.http.post(route, json=BODIES[route])
    assert (refused.status_code, error_of(refused)["type"]) == (429, kind)
    assert refused.headers["retry-after"] == "1"
    assert {answer.status_code for answer in [*answers, afterwards]} == {200}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_is_gone_leaves_no_work_behind(
    serve: Serve, fake_engine: Any, stream: bool
) -> None:
    """The gate stays shut: only the client's leaving can end the request."""
    async with serve(fake_engine) as service:
        await service.http.get("/healthz")
        body = json.dumps(BODIES[OPENAI] | {"stream": stream}).encode()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if (message := next(messages, None)) is not None:
                return message
            while not fake_engine.running:  # noqa: ASYNC110
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"authorization", b"Bearer tml-key"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": OPENAI, "raw_path": OPENAI.encode()}
        scope |= {"query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http"}
        await service.app(scope, receive, send)
        assert fake_engine.running == 0
        labels = f'{{model="{MODEL}",outcome="cancelled",protocol="openai"}}'
        assert f"tinsmith_inference_requests_total{labels} 1.0" in await figures(service)
        assert "tinsmith_inference_open 0.0" in await figures(service)


async def test_a_body_that_is_no_request_is_a_400(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        for content in (
            b"",
            b"{",
            b"[]",
            b'{"model": 5}',
            b'{"model": "tinsmith/tiny", "prompt": [-1]}',
            b'"\xff"',
        ):
            for route in BODIES:
                answer = await service.http.post(
                    route, content=content, headers={"content-type": "application/json"}
                )
                assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")


async def test_a_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.0)
    spoken = asyncio.Event()

    async def events() -> AsyncGenerator[bytes]:
        await spoken.wait()
        yield b"event"

    filled = event_stream.with_keep_alive(events(), b"still here")
    assert [await anext(filled) for _ in range(3)] == [b"still here"] * 3
    spoken.set()
    rest = [event async for event in filled]
    assert rest[-1] == b"event"
    assert set(rest[:-1]) <= {b"still here"}


async def test_an_answer_that_is_never_begun_closes_what_it_holds() -> None:
    closed: list[str] = []
    held = AsyncExitStack()
    held.callback(closed.append, "held")

    async def events() -> AsyncGenerator[bytes]:
        yield b"event"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.Event().wait()

    await event_stream.EventStream(events(), held)({"type": "http"}, receive, send)
    assert closed == ["held"]
