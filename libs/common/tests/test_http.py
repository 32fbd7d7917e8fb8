"""The HTTP shell, on a real app over ASGI."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry

from tinsmith_common.errors import Overloaded
from tinsmith_common.futures import PROTOBUF, PromiseKind
from tinsmith_common.http import Caller, install_http
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import encode_forward_backward_output

# The HTTP shell asks nothing of the store that its own tests do not ask of both kinds.
pytestmark = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)

KEY = {"X-API-Key": "tml-slime-dev-key"}
SDK = {**KEY, "Accept": PROTOBUF}


def make_app(settings: CommonSettings, stores: Stores) -> FastAPI:
    app = FastAPI()
    install_http(app, settings, stores, CollectorRegistry())

    @app.post("/echo")
    async def echo(request: Request, caller: Caller) -> dict[str, object]:
        return {"bytes": len(await request.body()), "owner": caller.owner}

    @app.post("/fails")
    async def fails() -> None:
        raise ZeroDivisionError("secret detail")

    @app.post("/busy")
    async def busy() -> None:
        raise Overloaded("later")

    return app


@pytest_asyncio.fixture
async def client(tmp_path: Path, stores: Stores) -> AsyncIterator[httpx.AsyncClient]:
    settings = CommonSettings(
        metadata_dir=tmp_path, max_body_mib=0.01, long_poll_s=0.1, metadata_only_over_bytes=1000
    )
    app = make_app(settings, stores)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("key", ["slime-dev-key", "tml-slime-dev-key"])
async def test_a_key_with_and_without_its_prefix_is_one_credential(
    client: httpx.AsyncClient, key: str
) -> None:
    answer = await client.post("/echo", content=b"abc", headers={"X-API-Key": key})
    assert answer.json() == {"bytes": 3, "owner": "local"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_a_key_can_come_as_a_bearer_token(client: httpx.AsyncClient, scheme: str) -> None:
    answer = await client.post("/echo", headers={"Authorization": f"{scheme} tml-slime-dev-key"})
    assert answer.json()["owner"] == "local"


async def test_the_api_key_header_comes_before_a_bearer_token(client: httpx.AsyncClient) -> None:
    wrong = {"Authorization": "Bearer tml-wrong"}
    assert (await client.post("/echo", headers={**KEY, **wrong})).status_code == 200
    right = {"X-API-Key": "tml-wrong", "Authorization": f"Bearer {KEY['X-API-Key']}"}
    assert (await client.post("/echo", headers=right)).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": "tml-wrong"},
        {"X-API-Key": ""},
        {"Authorization": "Bearer tml-wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic tml-slime-dev-key"},
    ],
)
async def test_a_bad_key_gets_401_with_a_reason(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post("/echo", headers=headers)
    assert answer.status_code == 401
    assert "API key" in answer.json()["detail"]


async def test_a_body_over_the_limit_gets_413_and_the_next_request_works(client: httpx.AsyncClient) -> None:
    answer = await client.post("/echo", content=b"x" * 20_000, headers=KEY)
    assert answer.status_code == 413
    assert "MAX_BODY_MIB" in answer.json()["detail"]
    assert (await client.post("/echo", content=b"x" * 10_000, headers=KEY)).json()["bytes"] == 10_000


async def test_a_streamed_body_over_the_limit_gets_413_too(client: httpx.AsyncClient) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    assert (await client.post("/echo", content=stream(), headers=KEY)).status_code == 413


async def test_an_unexpected_error_hides_its_text_and_is_a_500(client: httpx.AsyncClient) -> None:
    answer = await client.post("/fails")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["detail"]
    assert "secret" not in answer.text


async def test_overload_tells_when_to_come_back(client: httpx.AsyncClient) -> None:
    answer = await client.post("/busy")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


async def test_the_gateway_s_request_id_comes_back(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz", headers={"x-request-id": "abc-1"})).headers[
        "x-request-id"
    ] == "abc-1"
    assert (
        len((await client.get("/healthz", headers={"x-request-id": "a b\n"})).headers["x-request-id"]) == 32
    )


async def test_readiness_follows_the_app_s_state(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).status_code == 503


async def test_metrics_count_by_route_template(client: httpx.AsyncClient) -> None:
    await client.post("/echo", headers=KEY)
    text = (await client.get("/metrics")).text
    assert 'tinsmith_http_requests_total{method="POST",route="/echo",status="200"} 1.0' in text


async def poll(client: httpx.AsyncClient, request_id: str) -> httpx.Response:
    return await client.post("/api/v1/retrieve_future", json={"request_id": request_id}, headers=SDK)


async def test_polls_answer_try_again_then_the_result(client: httpx.AsyncClient, stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.FORWARD_BACKWARD, "local")
    waiting = await poll(client, "m:1")
    assert waiting.json()["type"] == "try_again"
    await stores.futures.resolve("m:1", b"\x01\x02", PROTOBUF)
    done = await poll(client, "m:1")
    assert (done.headers["content-type"], done.content) == (PROTOBUF, b"\x01\x02")


async def test_a_client_that_does_not_name_protobuf_gets_json(
    client: httpx.AsyncClient, stores: Stores
) -> None:
    results = {
        PromiseKind.FORWARD_BACKWARD: encode_forward_backward_output([], {"loss:sum": 2.0}),
        PromiseKind.SAMPLE: pb.SampleResponse(prompt_cache_hit_tokens=3).SerializeToString(),
    }
    for kind, payload in results.items():
        await stores.futures.submit(kind, kind, "local")
        await stores.futures.resolve(kind, payload, PROTOBUF)
    answers = [
        (await client.post("/api/v1/retrieve_future", json={"request_id": kind}, headers=KEY)).json()
        for kind in results
    ]
    assert answers[0]["metrics"] == {"loss:sum": 2.0}
    assert answers[1] == {"type": "sample", "sequences": [], "prompt_cache_hit_tokens": 3}


async def test_a_failed_promise_is_a_200_with_error_and_category(
    client: httpx.AsyncClient, stores: Stores
) -> None:
    await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "local")
    await stores.futures.fail("m:1", "bad rank", "user")
    answer = await poll(client, "m:1")
    assert (answer.status_code, answer.json()) == (200, {"error": "bad rank", "category": "user"})


async def test_an_unknown_promise_is_410(client: httpx.AsyncClient) -> None:
    assert (await poll(client, "nothing")).status_code == 410


async def test_a_poll_says_that_the_engine_is_not_up(client: httpx.AsyncClient, stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.FORWARD_BACKWARD, "local")
    waiting = (await poll(client, "m:1")).json()
    assert waiting["queue_state"] == "paused_capacity"
    assert "starting" in waiting["queue_state_reason"]


async def test_a_poll_of_a_ready_service_says_active_without_a_reason(tmp_path: Path, stores: Stores) -> None:
    app = make_app(CommonSettings(metadata_dir=tmp_path, long_poll_s=0.05), stores)
    app.state.ready = True
    await stores.futures.submit("m:1", PromiseKind.FORWARD_BACKWARD, "local")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        waiting = await poll(client, "m:1")
    assert waiting.json() == {"type": "try_again", "request_id": "m:1", "queue_state": "active"}


async def test_a_large_result_is_announced_and_then_sent(client: httpx.AsyncClient, stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.FORWARD_BACKWARD, "local")
    await stores.futures.resolve("m:1", b"x" * 1001, PROTOBUF)
    ask = {"request_id": "m:1", "allow_metadata_only": True}
    announced = await client.post("/api/v1/retrieve_future", json=ask, headers=SDK)
    assert announced.json() == {"status": "complete_metadata", "response_payload_size": 1001}
    assert (await poll(client, "m:1")).content == b"x" * 1001


async def test_a_small_result_is_sent_at_once(client: httpx.AsyncClient, stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.FORWARD_BACKWARD, "local")
    await stores.futures.resolve("m:1", b"x" * 1000, PROTOBUF)
    ask = {"request_id": "m:1", "allow_metadata_only": True}
    assert len((await client.post("/api/v1/retrieve_future", json=ask, headers=SDK)).content) == 1000


async def batch(client: httpx.AsyncClient, **body: object) -> dict[str, Any]:
    """A `retrieve_futures` poll of client 0 of the sampling session `s`."""
    target = {"type": "sampling_session", "sampling_session_id": "s", "cloned_sampler_id": 0}
    answer = await client.post("/api/v1/retrieve_futures", json={"target": target, **body}, headers=KEY)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_batch_poll_tells_results_with_their_size_from_failures(
    client: httpx.AsyncClient, stores: Stores
) -> None:
    for request_id in ("s:0", "s:1"):
        await stores.futures.submit(request_id, PromiseKind.SAMPLE, "local")
    await stores.futures.resolve("s:0", b"12345", PROTOBUF, queue="s/0")
    await stores.futures.fail("s:1", "bad", "user", queue="s/0")
    answer = await batch(client, prev_cursor=0, retrieved_request_ids=[])
    assert answer["completions"] == [
        {"state": "finished", "request_id": "s:0", "response_payload_uncompressed_size": 5},
        {"state": "failed", "request_id": "s:1"},
    ]
    again = await batch(client, prev_cursor=answer["cursor"], timeout=0)
    assert again == {"completions": [], "cursor": answer["cursor"]}


async def test_a_batch_poll_of_a_session_without_events_keeps_its_cursor(client: httpx.AsyncClient) -> None:
    assert await batch(client, prev_cursor=7) == {"completions": [], "cursor": 7}
