"""Futures in full, with the SDK through the gateway: batch polls, clones, sizes, compression."""

import multiprocessing
import pickle
import re
import threading
from concurrent.futures import ProcessPoolExecutor

import httpx
import numpy as np
import pytest
import tinker

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
SHORT = tinker.SamplingParams(max_tokens=4, stop=[])
LONG = tinker.SamplingParams(max_tokens=400, stop=[])


def prompt(seed: int = 1) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(some_tokens(seed, 8))


def figure(stack: Stack, service: str, name: str) -> float:
    """One figure of a service's metrics, summed over its labels; 0 where there is none yet."""
    text = httpx.get(f"{stack.service_url(service)}/metrics", timeout=30).text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M))


def requests(stack: Stack, service: str, route: str) -> float:
    """How many requests of a route a service has answered."""
    name = f'tinsmith_http_requests_total{{method="POST",route="/{route}",status="200"}}'
    return figure(stack, service, name)


def set_config(client: tinker.TrainingClient | tinker.SamplingClient, **values: bool | int) -> None:
    """Have one client work as under another server's settings."""
    vars(client.holder._client_config).update(values)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.row("retrieve-futures", call="SamplingClient.sample")
def test_samples_come_through_batch_polls(stack: Stack, service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    before = requests(stack, "sample", "retrieve_futures")
    futures = [sampler.sample(prompt(index), 1, SHORT) for index in range(40)]
    assert all(len(future.result().sequences[0].tokens) == 4 for future in futures)
    assert requests(stack, "sample", "retrieve_futures") > before


@pytest.mark.row("restart-sample", call="SamplingClient.sample")
def test_batch_polls_survive_a_restart_of_the_sample_service(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    assert sampler.sample(prompt(), 1, SHORT).result().sequences
    running = [sampler.sample(prompt(index), 1, LONG) for index in range(6)]
    restarted = threading.Thread(target=stack.restart, args=("sample",))
    restarted.start()
    for future in running:
        assert len(future.result(timeout=300).sequences[0].tokens) == 400
    restarted.join()


def _sample_elsewhere(pickled: bytes) -> list[str]:
    sampler: tinker.SamplingClient = pickle.loads(pickled)
    futures = [sampler.sample(prompt(), 1, SHORT) for _ in range(5)]
    return [future.result(timeout=120).sequences[0].sequence_id or "" for future in futures]


@pytest.mark.row("clients-in-processes", "join-session", call="pickle.loads(SamplingClient).sample")
def test_copies_of_a_client_in_two_processes_join_its_session(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    before = requests(stack, "sample", "join_sampling_session")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        ids = [pool.submit(_sample_elsewhere, pickle.dumps(sampler)) for _ in range(2)]
        everything = [item for future in ids for item in future.result(timeout=240)]
    own = sampler.sample(prompt(), 1, SHORT).result().sequences[0].sequence_id
    assert len({own, *everything}) == 11
    assert requests(stack, "sample", "join_sampling_session") - before >= 1


@pytest.mark.row("complete-metadata", call="SamplingClient.sample(topk_sample_logprobs=)")
def test_a_large_result_is_announced_first_and_arrives_whole(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    set_config(sampler, sample_use_retrieve_futures=False)  # batch polls tell the size by themselves
    before = requests(stack, "sample", "retrieve_future")
    # 32 samples of 80 tokens with 64 alternatives of 8 bytes: 1.3 MB, over METADATA_ONLY_OVER_BYTES.
    params = tinker.SamplingParams(max_tokens=80, stop=[])
    response = sampler.sample(prompt(), 32, params, topk_sample_logprobs=64).result()
    assert [len(sequence.tokens) for sequence in response.sequences] == [80] * 32
    assert requests(stack, "sample", "retrieve_future") - before == 2


@pytest.mark.row("compressed-body", call="TrainingClient.forward")
def test_a_compressed_batch_gives_what_a_plain_one_gives(trainer: tinker.TrainingClient) -> None:
    config = trainer.holder._client_config  # pyright: ignore[reportPrivateUsage]
    assert config.proto_compress_fwdbwd
    assert (config.fwdbwd_max_chunk_len, config.fwdbwd_max_chunk_bytes_count) == (8192, 32 * 2**20)
    data = [supervised(some_tokens(3))]
    compressed = logprobs_of(trainer.forward(data, "cross_entropy").result())[0]
    set_config(trainer, proto_compress_fwdbwd=False)
    plain = logprobs_of(trainer.forward(data, "cross_entropy").result())[0]
    np.testing.assert_array_equal(compressed, plain)


@pytest.mark.parametrize("encoding", ["zstd", "br"])
def test_a_body_that_is_not_what_its_encoding_says_gets_400(stack: Stack, encoding: str) -> None:
    answer = httpx.post(
        f"{stack.base_url}/api/v1/forward_backward",
        content=b"plain",
        headers={"X-API-Key": stack.api_key, "content-encoding": encoding},
    )
    assert answer.status_code == 400
    assert encoding in answer.json()["detail"]
