"""Two sample services behind Envoy, on Postgres: one dies under load, comes back, and is sent away in good order."""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
import tinker

from libs.common.tests.conftest import postgres as postgres
from tests.conftest import MODEL
from tests.data import some_tokens
from tinsmith_local import Stack, StackConfig

pytestmark = pytest.mark.e2e

SEEDS = range(5)
EACH = 8
REPLICAS = ("sample", "sample-2")
TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def database(postgres: str) -> str:
    """An empty database's address."""
    name = f"replicas_{uuid.uuid4().hex}"
    query(f"{postgres}/postgres", f"CREATE DATABASE {name}")
    return f"{postgres}/{name}"


@pytest.fixture(scope="module")
def replicated(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {
        "DATABASE_URL": f"postgresql+asyncpg://{database}",
        "REPLICA_TIMEOUT_S": str(TIMEOUT_S),
        "ENGINE_CHECK_INTERVAL_S": "1",
    }
    folder = tmp_path_factory.mktemp("replicas")
    with Stack(StackConfig(port=0, data_dir=folder, sample_replicas=2, drain_grace_s=20, env=env)) as stack:
        yield stack


@pytest.fixture(scope="module")
def sampler(replicated: Stack) -> Iterator[tinker.SamplingClient]:
    with tinker.ServiceClient(base_url=replicated.base_url, api_key=replicated.api_key) as service:
        yield service.create_sampling_client(base_model=MODEL).result()


@pytest.fixture(scope="module")
def expected(sampler: tinker.SamplingClient) -> dict[int, list[int]]:
    """What each seed gives where nothing goes wrong."""
    return {seed: tokens(sample(sampler, seed)) for seed in SEEDS}


def query(address: str, statement: str) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(f"postgresql://{address}")
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


def sample(sampler: tinker.SamplingClient, seed: int) -> Any:
    params = tinker.SamplingParams(max_tokens=200, stop=[], seed=seed)
    return sampler.sample(tinker.ModelInput.from_ints(some_tokens(1)), 1, params)


def tokens(future: Any) -> list[int]:
    return list(future.result(timeout=120).sequences[0].tokens)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> float:
    """Seconds until it holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s
        time.sleep(0.05)
    return time.monotonic() - start


def unfinished(database: str) -> dict[str, int]:
    """Samples by the port of the replica that holds them."""
    held = "split_part(split_part(holder, '/', 2), ':', 2)"
    rows = query(
        database,
        f"SELECT {held} AS port, count(*) FROM promises WHERE kind = 'Sample' AND state = 'pending' GROUP BY 1",
    )
    return {row["port"]: row["count"] for row in rows}


def port(stack: Stack, replica: str) -> str:
    return stack.service_url(replica).rpartition(":")[2]


def load_both(stack: Stack, database: str, sampler: tinker.SamplingClient) -> list[tuple[int, Any]]:
    """Samples in flight at both replicas, with their seeds."""
    running = [(seed, sample(sampler, seed)) for _ in range(EACH) for seed in SEEDS]
    ports = {port(stack, replica) for replica in REPLICAS}

    def both_have_many() -> bool:
        held = unfinished(database)
        return held.keys() == ports and min(held.values()) >= len(running) // 4

    wait_for(both_have_many)
    return running


def test_the_samples_of_a_killed_replica_are_finished_by_the_other(
    replicated: Stack, database: str, sampler: tinker.SamplingClient, expected: dict[int, list[int]]
) -> None:
    running = load_both(replicated, database, sampler)
    dead = port(replicated, "sample-2")
    replicated.kill("sample-2")
    lost = unfinished(database).get(dead, 0)
    seconds = wait_for(lambda: dead not in unfinished(database))
    print(f"{lost} samples of the dead replica taken over after {seconds:.1f} s")
    assert lost > 0
    assert seconds < TIMEOUT_S * 3
    assert [tokens(future) for _, future in running] == [expected[seed] for seed, _ in running]
    ended = query(database, "SELECT state, count(*) FROM promises WHERE kind = 'Sample' GROUP BY 1")
    assert [(row["state"], row["count"]) for row in ended] == [("done", len(SEEDS) * (EACH + 1))]


def test_one_that_comes_back_takes_its_part_and_either_answers_any_poll(
    replicated: Stack, database: str, sampler: tinker.SamplingClient, expected: dict[int, list[int]]
) -> None:
    replicated.restart("sample-2")
    # Envoy lets it in with its next health check.
    wait_for(lambda: all("health_flags::healthy" in line for line in health(replicated)))
    running = load_both(replicated, database, sampler)
    assert [tokens(future) for _, future in running] == [expected[seed] for seed, _ in running]
    # What the SDK has fetched it acknowledges, upon which it is gone: this one is asked for without it.
    (row,) = query(database, "SELECT request_id FROM promises WHERE kind = 'Sample' LIMIT 1")
    body = {
        "sampling_session_id": row["request_id"].rpartition(":")[0],
        "seq_id": 10**6,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": some_tokens(1)}]},
        "sampling_params": {"max_tokens": 50},
    }
    promise = post(replicated, "sample", "asample", body).json()
    polls = [post(replicated, replica, "retrieve_future", promise) for replica in reversed(REPLICAS)]
    assert polls[0].headers["content-type"] == "application/x-protobuf"
    assert polls[0].content == polls[1].content != b""


def post(stack: Stack, replica: str, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"X-API-Key": stack.api_key, "Accept": "application/x-protobuf"}
    url = f"{stack.service_url(replica)}/api/v1/{path}"
    return httpx.post(url, json=body, headers=headers, timeout=60).raise_for_status()


def health(stack: Stack) -> list[str]:
    """What Envoy thinks of the sample service's replicas."""
    lines = httpx.get(f"{stack.service_url('gateway')}/clusters").text.splitlines()
    return [line for line in lines if line.startswith("tinsmith-sample::127.") and "health_flags" in line]


def test_a_replica_that_is_told_to_end_loses_nothing_and_the_stack_goes_on(
    replicated: Stack, database: str, sampler: tinker.SamplingClient, expected: dict[int, list[int]]
) -> None:
    running = load_both(replicated, database, sampler)
    (service,) = psutil.Process(replicated.pids()["sample-2"]).children()
    os.kill(service.pid, signal.SIGTERM)
    later = [(seed, sample(sampler, seed)) for seed in SEEDS]
    results = [(seed, tokens(future)) for seed, future in running + later]
    assert results == [(seed, expected[seed]) for seed, _ in results]
    wait_for(lambda: "sample-2" not in replicated.pids())
    assert replicated.up
    assert "finishing what runs" in replicated.logs("sample-2")
    assert "Traceback" not in replicated.logs("sample-2")
