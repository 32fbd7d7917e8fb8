"""Several replicas of one service behind the real Envoy."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tinsmith_local.console import Console
from tinsmith_local.gateway import Endpoint, GatewayOptions, bootstrap
from tinsmith_local.parts import envoy_path
from tinsmith_local.ports import free_ports
from tinsmith_local.process import Launch, PartProcess

LOOPBACK = "127.0.0.1"
STANDIN = Path(__file__).with_name("standin.py")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@dataclass
class Replicated:
    """Envoy before one train service and two sample replicas, by name."""

    client: httpx.Client
    parts: dict[str, PartProcess]

    def answering(self, requests: int) -> list[str]:
        """Which replica, or which status, each of so many requests got."""
        answers = [self.client.post("/api/v1/asample") for _ in range(requests)]
        return [
            answer.json()["service"] if answer.is_success else str(answer.status_code) for answer in answers
        ]


@pytest.fixture
def gateway(tmp_path: Path, manifests: Path) -> Iterator[Replicated]:
    listen, admin, *ports = free_ports(5)
    names = ("train", "sample-a", "sample-b")
    replicas = {name: Endpoint(LOOPBACK, port) for name, port in zip(names, ports, strict=True)}
    services = {
        "tinsmith-train": [replicas["train"]],
        "tinsmith-sample": [replicas["sample-a"], replicas["sample-b"]],
    }
    options = GatewayOptions({"http": Endpoint(LOOPBACK, listen)}, Endpoint(LOOPBACK, admin), services)
    (tmp_path / "envoy.json").write_text(json.dumps(bootstrap(manifests, options)))
    envoy = [
        envoy_path(),
        "-c",
        str(tmp_path / "envoy.json"),
        "--log-level",
        "warning",
        "--disable-hot-restart",
    ]
    launches = [
        Launch(
            name=name,
            command=(sys.executable, str(STANDIN), name, "SERVICE"),
            env={"SERVICE_HOST": LOOPBACK, "SERVICE_PORT": str(endpoint.port)},
        )
        for name, endpoint in replicas.items()
    ]
    with ExitStack() as held:
        parts: dict[str, PartProcess] = {}

        def start(launch: Launch) -> None:
            log = tmp_path / f"{launch.name}.log"
            parts[launch.name] = PartProcess(launch, log, Console(show_logs=False), lambda _: None)
            held.callback(parts[launch.name].wait, 20)
            held.callback(parts[launch.name].kill)

        for launch in launches:
            start(launch)
        # Before Envoy: a host that fails the very first check is asked again only after a minute.
        wait_for(lambda: all(_ready(endpoint) for endpoint in replicas.values()))
        start(Launch(name="gateway", command=envoy))
        client = held.enter_context(httpx.Client(base_url=f"http://{LOOPBACK}:{listen}", timeout=30.0))
        replicated = Replicated(client, parts)
        wait_for(lambda: _both_answer(replicated))
        yield replicated


def _ready(endpoint: Endpoint) -> bool:
    try:
        return httpx.get(f"http://{endpoint.host}:{endpoint.port}/readyz").is_success
    except httpx.HTTPError:
        return False


def _both_answer(gateway: Replicated) -> bool:
    try:
        return set(gateway.answering(20)) == {"sample-a", "sample-b"}
    except httpx.HTTPError:
        return False


def test_requests_are_spread_over_the_replicas(gateway: Replicated) -> None:
    answers = gateway.answering(200)
    assert min(answers.count("sample-a"), answers.count("sample-b")) > 40


def test_a_dead_replica_is_left_out_and_the_other_answers_everything(gateway: Replicated) -> None:
    gateway.parts["sample-a"].kill()
    gateway.parts["sample-a"].wait()
    # Three failures are needed to know it; the SDK repeats what meets them.
    wait_for(lambda: gateway.answering(30) == ["sample-b"] * 30)
    assert gateway.answering(200) == ["sample-b"] * 200
