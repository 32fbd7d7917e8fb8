"""What the real Envoy does with real requests, in front of the stand-ins."""

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tinsmith_local import Stack

pytestmark = pytest.mark.integration

POLL = "/api/v1/retrieve_future"


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.base_url, timeout=60.0, trust_env=False) as client:
        yield client


ROUTES = [
    ("POST", POLL, {"X-Tinker-Request-Type": "Sample"}, "sample"),
    ("POST", POLL, {"X-Tinker-Request-Type": "ForwardBackward"}, "train"),
    ("POST", POLL, {"X-Tinker-Request-Type": "SaveWeightsForSampler"}, "train"),
    ("POST", POLL, {}, "train"),
    ("POST", "/api/v1/retrieve_futures", {}, "sample"),
    ("POST", "/api/v1/asample", {}, "sample"),
    ("POST", "/api/v1/create_sampling_session", {}, "sample"),
    ("POST", "/api/v1/join_sampling_session", {}, "sample"),
    ("POST", "/api/v1/cancel_future", {}, "sample"),
    ("GET", "/api/v1/samplers/run:sample:0", {}, "sample"),
    ("GET", "/api/v1/samplersX", {}, "train"),
    ("POST", "/api/v1/asampleX", {}, "train"),
    ("POST", "/oai/api/v1/chat/completions", {}, "sample"),
    ("POST", "/anthropic/api/v1/messages", {}, "sample"),
    ("GET", "/api/v1/ui/sampling", {}, "sample"),
    ("GET", "/api/v1/ui/training", {}, "train"),
    ("GET", "/ui", {}, "train"),
    ("GET", "/ui/app.js", {}, "train"),
    ("POST", "/api/v1/client/config", {}, "train"),
    ("POST", "/api/v1/forward_backward", {}, "train"),
    ("DELETE", "/api/v1/training_runs/a:train:0/checkpoints/weights/one", {}, "train"),
]


@pytest.mark.parametrize(("method", "path", "headers", "service"), ROUTES)
def test_a_request_reaches_its_service_with_its_path_unchanged(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], service: str
) -> None:
    seen = client.request(method, path, params={"limit": 5}, headers=headers).raise_for_status().json()
    assert (seen["service"], seen["path"], seen["query"]) == (service, path, "limit=5")


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v2/asample", "/oaiX", "/anthropicX", "/metrics", "/readyz", "/uiX"]
)
def test_a_path_outside_the_api_is_404(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == httpx.codes.NOT_FOUND


def test_healthz_is_answered(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ready"}


def test_the_clients_headers_arrive(client: httpx.Client) -> None:
    sent = {"X-API-Key": "tml-x", "X-Tinker-Request-Iteration": "3", "Content-Type": "application/x-protobuf"}
    seen = client.post("/api/v1/forward_backward", headers=sent, content=b"x").json()["headers"]
    assert {key: seen[key.lower()] for key in sent} == sent


def test_a_request_without_an_id_gets_one_and_a_given_one_is_kept(client: httpx.Client) -> None:
    made = client.post("/api/v1/telemetry").json()["headers"]["x-request-id"]
    assert len(made) == 36
    kept = client.post("/api/v1/telemetry", headers={"X-Request-Id": "mine"}).json()["headers"][
        "x-request-id"
    ]
    assert kept == "mine"


def test_cleartext_http2_is_accepted(stack: Stack) -> None:
    with httpx.Client(base_url=stack.base_url, http1=False, http2=True, trust_env=False) as client:
        response = client.post("/api/v1/asample")
    assert (response.http_version, response.json()["service"]) == ("HTTP/2", "sample")


@pytest.mark.parametrize("path", ["/api/v1/forward_backward", "/api/v1/asample", POLL])
def test_a_body_of_100_mib_arrives_whole(client: httpx.Client, path: str) -> None:
    pieces = [bytes([i]) * (1 << 20) for i in range(100)]
    expected = hashlib.sha256(b"".join(pieces)).hexdigest()
    seen: dict[str, Any] = client.post(path, content=iter(pieces)).raise_for_status().json()
    assert (seen["size"], seen["sha256"]) == (100 << 20, expected)


async def test_300_polls_are_held_at_once(stack: Stack) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=stack.base_url, limits=limits, timeout=60.0, trust_env=False
    ) as client:
        answers = await asyncio.gather(*(client.post(POLL, params={"hold_s": 3}) for _ in range(300)))
    assert [answer.status_code for answer in answers] == [httpx.codes.OK] * 300


@pytest.mark.slow
def test_a_poll_may_outlast_envoys_default_of_15_seconds(client: httpx.Client) -> None:
    assert client.post(POLL, params={"hold_s": 16}).status_code == httpx.codes.OK


def test_a_dead_service_is_503_and_the_other_still_answers(stack: Stack, client: httpx.Client) -> None:
    stack.kill("sample")
    try:
        assert client.post("/api/v1/asample").status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert client.post("/api/v1/forward_backward").json()["service"] == "train"
    finally:
        stack.restart("sample")
    assert client.post("/api/v1/asample").json()["service"] == "sample"


def test_a_service_dying_under_a_poll_fails_the_poll_at_once(stack: Stack, client: httpx.Client) -> None:
    async def poll_while_killing() -> httpx.Response:
        headers = {"X-Tinker-Request-Type": "Sample"}
        async with httpx.AsyncClient(base_url=stack.base_url, timeout=60.0, trust_env=False) as caller:
            poll = asyncio.create_task(caller.post(POLL, params={"hold_s": 40}, headers=headers))
            await asyncio.sleep(1)
            await asyncio.to_thread(stack.kill, "sample")
            return await asyncio.wait_for(poll, timeout=20)

    try:
        assert asyncio.run(poll_while_killing()).status_code == httpx.codes.SERVICE_UNAVAILABLE
    finally:
        stack.restart("sample")
