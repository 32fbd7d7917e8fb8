"""Section 4: what a poll can be answered with, one by one and in batches."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import tinker

from tests.data import logprobs_of, some_tokens, supervised
from tests.fuzz.requests import good
from tests.raw import MODEL, RawClient, skip_a_turn
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

CLONE = 10**9
PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]}


@pytest.fixture(scope="module")
def raw(stack: Stack) -> RawClient:
    return RawClient(stack)


def new_sampler(raw: RawClient) -> str:
    body = {"session_id": raw.new_session(), "sampling_session_seq_id": 0, "base_model": MODEL}
    return raw.post("/create_sampling_session", **body)["sampling_session_id"]


def sample(raw: RawClient, sampler: str, seq_id: int, **params: Any) -> str:
    body = {"sampling_session_id": sampler, "seq_id": seq_id, "prompt": PROMPT}
    params = {"max_tokens": 3, "stop": [], **params}
    return raw.post("/asample", **body, sampling_params=params)["request_id"]


def ended(
    raw: RawClient, sampler: str, cursor: int = 0, clone: int = 0, **body: Any
) -> tuple[list[Any], int]:
    target = {"type": "sampling_session", "sampling_session_id": sampler, "cloned_sampler_id": clone}
    answer = raw.post("/retrieve_futures", target=target, prev_cursor=cursor, **body)
    return answer["completions"], answer["cursor"]


@pytest.mark.row("long-poll", "try-again", "poll-across-40s", call="TrainingClient.forward(…).result()")
def test_an_operation_of_more_than_40_s_is_polled_until_it_is_done(
    raw: RawClient, trainer: tinker.TrainingClient
) -> None:
    data = [supervised(some_tokens(1))]
    at_once = logprobs_of(trainer.forward(data, "cross_entropy").result())[0]
    model_id = trainer.get_info().model_id
    missing = skip_a_turn(trainer)
    waiting = ThreadPoolExecutor(1).submit(trainer.forward(data, "cross_entropy").result)
    while True:  # until the SDK has submitted it, the promise is unknown
        begun = time.monotonic()
        answer = raw.poll(f"{model_id}:{missing + 1}")
        if answer.status_code != 410:
            break
    held_s = time.monotonic() - begun
    assert answer.json() == {
        "type": "try_again",
        "request_id": f"{model_id}:{missing + 1}",
        "queue_state": "paused_capacity",
        "queue_state_reason": f"it waits for seq_id {missing} of this model, which has not arrived",
    }
    # A poll that is not held makes a hot loop, and one of more than 40 s a time-out: bounds of the protocol.
    assert 20 < held_s < 40
    time.sleep(max(0.0, 41 - held_s))
    assert not waiting.done()
    raw.submit(good(model_id, missing)).raise_for_status()
    assert (logprobs_of(waiting.result(timeout=60))[0] == at_once).all()


@pytest.mark.row("protobuf-where-due", "result-read-twice", "retrieve-future", call="raw HTTP")
def test_results_are_protobuf_where_due_json_elsewhere_and_can_be_read_again(raw: RawClient) -> None:
    model_id = raw.new_model()
    passed = raw.submit(good(model_id, 1)).json()["request_id"]
    stepped = raw.post("/optim_step", model_id=model_id, seq_id=2, adam_params={})["request_id"]
    sampled = sample(raw, new_sampler(raw), 0)
    kinds: dict[str, Any] = {passed: pb.ForwardBackwardOutput, sampled: pb.SampleResponse, stepped: None}
    for request_id, message in kinds.items():
        first, again = raw.poll(request_id), raw.poll(request_id)
        assert first.content == again.content
        kind = "application/json" if message is None else "application/x-protobuf"
        assert first.headers["content-type"].startswith(kind)
        if message is not None:
            assert message.FromString(first.content).ByteSize() > 0


@pytest.mark.row("complete-metadata", call="raw HTTP")
def test_a_large_result_is_announced_by_its_size_and_then_given(raw: RawClient) -> None:
    sampler = new_sampler(raw)
    body = {"sampling_session_id": sampler, "seq_id": 0, "prompt": PROMPT, "num_samples": 32}
    params = {"max_tokens": 80, "stop": []}
    promise = raw.post("/asample", **body, sampling_params=params, topk_sample_logprobs=64)
    while (answer := raw.poll(promise["request_id"], allow_metadata_only=True).json()).get("type"):
        pass
    whole = raw.poll(promise["request_id"], allow_metadata_only=False)
    assert answer == {"status": "complete_metadata", "response_payload_size": len(whole.content)}
    assert len(whole.content) > 2**20


@pytest.mark.row("retrieve-futures", "batch-cursor", "batch-ack", "batch-no-wait", call="raw HTTP")
def test_completions_come_after_a_cursor_again_from_an_older_one_and_go_when_acknowledged(
    raw: RawClient,
) -> None:
    sampler = new_sampler(raw)
    assert ended(raw, sampler, timeout=0)[0] == []
    first = sample(raw, sampler, 0)
    one, after_one = ended(raw, sampler)
    assert [(item["state"], item["request_id"]) for item in one] == [("finished", first)]
    assert one[0]["response_payload_uncompressed_size"] == len(raw.poll(first).content)
    second = sample(raw, sampler, 1)
    two, after_two = ended(raw, sampler, after_one)
    assert [item["request_id"] for item in two] == [second]
    assert after_two > after_one
    assert [item["request_id"] for item in ended(raw, sampler, 0)[0]] == [first, second]
    left, _ = ended(raw, sampler, 0, retrieved_request_ids=[first], timeout=0)
    assert [item["request_id"] for item in left] == [second]
    assert raw.poll(first).status_code == 410
    assert raw.poll(second).status_code == 200


@pytest.mark.row("batch-clones", "batch-failed", "huge-seq-id", call="raw HTTP")
def test_each_clone_hears_of_its_own_samples_and_of_failures(raw: RawClient) -> None:
    sampler = new_sampler(raw)
    own, clone_s = sample(raw, sampler, 5), sample(raw, sampler, 7 * CLONE + 5)
    largest = 2**63 - 1
    far = sample(raw, sampler, largest, seed=largest)
    body = {"sampling_session_id": sampler, "seq_id": 8 * CLONE, "sampling_params": {"max_tokens": 1}}
    bad = raw.post("/asample", **body, prompt={"chunks": []})["request_id"]
    for clone, request_id in {0: own, 7: clone_s, largest // CLONE: far}.items():
        assert [item["request_id"] for item in ended(raw, sampler, clone=clone)[0]] == [request_id]
    assert ended(raw, sampler, clone=8)[0] == [{"state": "failed", "request_id": bad}]
    assert raw.poll(bad).json()["category"] == "user"


@pytest.mark.row("cancel-future", "cancelled-sample", call="cancelled await of SamplingClient.sample")
def test_a_sample_that_is_given_up_fails_and_the_next_one_runs(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    prompt = tinker.ModelInput.from_ints([5, 6, 7])
    brief = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=1)).result().sequences[0]
    sampling_session = (brief.sequence_id or "").rsplit(":", 2)[0]
    request_id = f"{sampling_session}:1"

    async def give_up() -> None:
        params = tinker.SamplingParams(max_tokens=900, stop=[])
        waiting = asyncio.create_task(sampler.sample(prompt, 8, params).result_async())
        while not await asyncio.to_thread(raw.is_running, request_id):
            assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})

    asyncio.run(give_up())
    assert "cancelled" in raw.poll(request_id).json()["error"]
    assert raw.http.post("/cancel_future", json={"request_id": "unknown"}).is_success
    assert sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=3, stop=[])).result().sequences


@pytest.mark.row("expired-promise", call="raw HTTP")
def test_a_promise_that_has_expired_is_lost(raw: RawClient, stack: Stack) -> None:
    sampler = new_sampler(raw)
    request_id = sample(raw, sampler, 0)
    assert raw.poll(request_id).status_code == 200
    long_ago = "2001-01-01 00:00:00.000000"
    # Retention is ten minutes at least; so the clock is turned back for this one.
    with sqlite3.connect(database(stack), timeout=30) as store:
        store.execute("UPDATE promises SET finished_at = ? WHERE request_id = ?", (long_ago, request_id))
    while raw.poll(request_id).status_code == 200:
        time.sleep(0.2)
    assert raw.poll(request_id).status_code == 410


def database(stack: Stack) -> str:
    (found,) = stack.config.data_dir.rglob("futures.db")
    return str(found)


@pytest.fixture
def starting(stack: Stack) -> Iterator[RawClient]:
    """The sample service itself, which lets three samples wait, while its engine starts."""
    environment: Any = stack.config.env
    # A short hold, so that a poll is answered before the engine is up.
    environment |= {"MAX_QUEUED_SAMPLES": "3", "LONG_POLL_S": "1"}
    stack.kill("sample")
    restarted = threading.Thread(target=stack.restart, args=("sample",))
    restarted.start()
    # Not through the gateway, which sends nothing before the engine is up if there was an earlier failure.
    service = RawClient(stack, "sample")
    while not is_alive(service):
        time.sleep(0.1)
    yield service
    restarted.join()
    del environment["MAX_QUEUED_SAMPLES"], environment["LONG_POLL_S"]
    stack.restart("sample")


def is_alive(service: RawClient) -> bool:
    try:
        return service.http.get("/healthz").is_success
    except httpx.TransportError:
        return False


@pytest.mark.row("queue-state-reason", "overloaded", call="raw HTTP; SamplingClient.sample")
def test_while_the_engine_starts_samples_wait_with_a_reason_and_too_many_are_told_to_come_back(
    raw: RawClient, service: tinker.ServiceClient, request: pytest.FixtureRequest
) -> None:
    client, sampler = service.create_sampling_client(base_model=MODEL).result(), new_sampler(raw)
    starting: RawClient = request.getfixturevalue("starting")
    waiting = [sample(starting, sampler, seq_id) for seq_id in range(3)]
    body = {"sampling_session_id": sampler, "seq_id": 3, "prompt": PROMPT}
    refused = starting.http.post("/asample", json=body)
    assert refused.status_code == 429
    assert float(refused.headers["retry-after"]) > 0
    assert "again" in refused.json()["detail"]
    poll = starting.poll(waiting[0]).json()
    assert poll["queue_state"] == "paused_capacity"
    assert "starting" in poll["queue_state_reason"]
    # The SDK waits and comes back by itself; what waited runs.
    prompt, params = tinker.ModelInput.from_ints([5]), tinker.SamplingParams(max_tokens=2, stop=[])
    assert len(client.sample(prompt, 1, params).result(timeout=300).sequences[0].tokens) == 2
    for request_id in waiting:
        while b"try_again" in (answer := starting.poll(request_id)).content:
            pass
        assert pb.SampleResponse.FromString(answer.content).sequences
