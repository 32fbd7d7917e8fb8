"""Sections 4.7 to 4.9: the order of operations, the same submission twice, and the metrics of chunks."""

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tinker

from tests.data import logprobs_of, some_tokens, supervised
from tests.fuzz.requests import good
from tests.raw import MODEL, RawClient
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

ADAM = {"learning_rate": 0.01}


@pytest.fixture(scope="module")
def raw(stack: Stack) -> RawClient:
    return RawClient(stack)


def loss_of(raw: RawClient, request_id: str) -> float:
    return pb.ForwardBackwardOutput.FromString(raw.result(request_id)["protobuf"]).metrics["loss:sum"]


def submit_pass(raw: RawClient, model_id: str, seq_id: int, *, forward_only: bool = False) -> str:
    message = good(model_id, seq_id)
    message.forward_only = forward_only
    return raw.submit(message).raise_for_status().json()["request_id"]


def submit_step(raw: RawClient, model_id: str, seq_id: int) -> str:
    return raw.post("/optim_step", model_id=model_id, seq_id=seq_id, adam_params=ADAM)["request_id"]


def loss_after(raw: RawClient, turns: list[tuple[Callable[..., str], int]]) -> float:
    """The loss of an always equal model after operations submitted in this order, the last turn being a pass."""
    model_id = raw.new_model(seed=1)
    last = max(seq_id for _, seq_id in turns) + 1
    promises = [submit(raw, model_id, seq_id) for submit, seq_id in turns]
    loss = loss_of(raw, submit_pass(raw, model_id, last, forward_only=True))
    for promise in promises:
        assert "error" not in raw.result(promise)
    return loss


@pytest.mark.row("out-of-order", "promise-at-once", call="raw HTTP")
def test_operations_run_in_the_order_of_their_turns_not_of_their_arrival(raw: RawClient) -> None:
    model_id = raw.new_model(seed=1)
    # Each is answered before the one that it must wait for has been sent at all.
    score = submit_pass(raw, model_id, 3, forward_only=True)
    step = submit_step(raw, model_id, 2)
    first = submit_pass(raw, model_id, 1)
    ordered = loss_after(raw, [(submit_pass, 1), (submit_step, 2)])
    assert loss_of(raw, score) == ordered
    assert loss_of(raw, first) > ordered + 1e-3
    assert raw.result(step)["metrics"]["grad_norm"] > 0


@pytest.mark.row("dedup-pass", "dedup-step", call="raw HTTP")
def test_a_pass_or_a_step_sent_twice_is_one_promise_and_runs_once(raw: RawClient) -> None:
    once = loss_after(raw, [(submit_pass, 1), (submit_step, 2), (submit_pass, 3), (submit_step, 4)])
    twice = [(submit_pass, 1), (submit_pass, 1), (submit_step, 2), (submit_step, 2)]
    again = loss_after(raw, [*twice, (submit_pass, 3), (submit_step, 4), (submit_step, 4), (submit_pass, 1)])
    assert once == again
    assert once != loss_after(raw, [(submit_pass, 1), (submit_pass, 2), (submit_step, 3), (submit_step, 4)])
    model_id = raw.new_model()
    assert submit_pass(raw, model_id, 1) == submit_pass(raw, model_id, 1)


@pytest.mark.row(
    "failure-between", "rejected-turn", call="forward_backward, bad forward_backward, forward_backward"
)
def test_a_failing_operation_between_two_good_ones_fails_alone(service: tinker.ServiceClient) -> None:
    good_data, bad = [supervised(some_tokens(1))], [supervised([5, 10**6, 7])]

    def gradient(*batches: list[tinker.Datum]) -> list[Any]:
        trainer = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
        passes = [trainer.forward_backward(batch, "cross_entropy") for batch in batches]
        return [*passes, trainer.optim_step(tinker.AdamParams())]

    first, failing, second, step = gradient(good_data, bad, good_data)
    with pytest.raises(tinker.RequestFailedError, match="vocabulary"):
        failing.result()
    assert first.result().metrics == second.result().metrics
    alone = gradient(good_data, good_data)[-1].result().metrics["grad_norm"]
    assert step.result().metrics["grad_norm"] == pytest.approx(alone, rel=1e-5)


@pytest.mark.row(
    "chunks", "metrics-combined", "metric-names", call="forward_backward with fwdbwd_max_chunk_len 2"
)
def test_three_chunks_and_a_step_give_what_one_batch_gives(service: tinker.ServiceClient) -> None:
    data = [supervised(some_tokens(seed, 5 + seed)) for seed in range(5)]

    def train(chunk: int) -> tuple[tinker.ForwardBackwardOutput, Any]:
        trainer = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
        config = vars(trainer.holder._client_config)  # pyright: ignore[reportPrivateUsage]
        before = config["fwdbwd_max_chunk_len"]
        config["fwdbwd_max_chunk_len"] = chunk
        passed, stepped = (
            trainer.forward_backward(data, "cross_entropy"),
            trainer.optim_step(tinker.AdamParams()),
        )
        results = passed.result(), stepped.result().metrics
        config["fwdbwd_max_chunk_len"] = before
        return results

    (chunked, chunked_step), (whole, whole_step) = train(2), train(100)
    for ours, theirs in zip(logprobs_of(chunked), logprobs_of(whole), strict=True):
        # Packed in other company, float32 sums differ in their last digits.
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert all(name.count(":") == 1 for name in whole.metrics)
    assert chunked.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-5)
    assert chunked.metrics.keys() == whole.metrics.keys()
    assert chunked_step["grad_norm"] == pytest.approx(whole_step["grad_norm"], rel=1e-4)


def twice(raw: RawClient, url: str, **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Submit twice; both must be one promise with one result that is no failure. Answers promise and result."""
    first, again = raw.post(url, **body), raw.post(url, **body)
    assert first == again
    result, reread = raw.result(first["request_id"]), raw.result(first["request_id"])
    assert result == reread
    assert "error" not in result, result
    return first, result


@pytest.mark.row("dedup-save", "dedup-load", "dedup-external", call="raw HTTP")
def test_a_save_export_or_load_sent_twice_succeeds_twice_and_is_there_once(raw: RawClient) -> None:
    model_id = raw.new_model()
    _, saved = twice(raw, "/save_weights", model_id=model_id, seq_id=1, path="same")
    twice(raw, "/save_weights_external", model_id=model_id, seq_id=2, path="same")
    twice(raw, "/load_weights", model_id=model_id, seq_id=3, path=saved["path"], optimizer=True)
    listed = raw.http.get(f"/training_runs/{model_id}/checkpoints").json()["checkpoints"]
    assert sorted(item["checkpoint_id"] for item in listed) == ["external_weights/same", "weights/same"]


@pytest.mark.row("dedup-create", "dedup-create-via-load", "ids", call="raw HTTP")
def test_a_model_created_twice_is_one_model(raw: RawClient) -> None:
    session_id = raw.new_session()
    body = {"session_id": session_id, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 4}}
    _, created = twice(raw, "/create_model", **body)
    assert created["model_id"] == f"{session_id}:train:0"
    # Not the same one anew: what it has learned since is still there.
    submit_pass(raw, created["model_id"], 1)
    assert raw.result(submit_step(raw, created["model_id"], 2))["metrics"]["grad_norm"] > 0
    raw.post("/create_model", **body)
    submit_pass(raw, created["model_id"], 3)
    assert raw.result(submit_step(raw, created["model_id"], 4))["metrics"]["optimizer_step"] == 2
    save = raw.post("/save_weights", model_id=created["model_id"], seq_id=5, path="here")
    path = raw.result(save["request_id"])["path"]
    assert path == f"tinker://{session_id}:train:0/weights/here"
    _, loaded = twice(raw, "/load_weights", session_id=session_id, model_seq_id=1, path=path, optimizer=False)
    assert loaded["model_id"] == f"{session_id}:train:1"
    runs = raw.http.get(f"/sessions/{session_id}").json()["training_run_ids"]
    assert sorted(runs) == [f"{session_id}:train:{index}" for index in (0, 1)]


@pytest.mark.row("dedup-sampling-session", "dedup-sampler-save", "dedup-sample", call="raw HTTP")
def test_sampling_sessions_snapshots_and_samples_sent_twice_are_one_each(raw: RawClient) -> None:
    session_id = raw.new_session()
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": MODEL}
    sampler, again = (raw.post("/create_sampling_session", **body)["sampling_session_id"] for _ in "12")
    assert sampler == again
    model_id = raw.new_model(session_id)
    snapshot = {"model_id": model_id, "seq_id": 1, "sampling_session_seq_id": 1}
    _, saved = twice(raw, "/save_weights_for_sampler", **snapshot)
    samplers = raw.http.get(f"/sessions/{session_id}").json()["sampler_ids"]
    assert sorted(samplers) == sorted([sampler, saved["sampling_session_id"]])
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]}
    params = {"max_tokens": 8, "stop": []}  # no seed: a second run would draw other tokens
    sample = {"sampling_session_id": sampler, "seq_id": 3, "num_samples": 2, "prompt": prompt}
    promise, _ = twice(raw, "/asample", **sample, sampling_params=params)
    assert len(set(promise["sample_sequence_ids"])) == 2


@pytest.mark.row("dedup-custom-loss", call="raw HTTP")
def test_a_loss_uploaded_twice_is_one_loss(raw: RawClient) -> None:
    nodes = [
        {"op": "placeholder", "name": "lp", "target": "logprobs"},
        {"op": "call_method", "name": "s", "target": "sum", "args": [{"ref": "lp"}]},
        {"op": "output", "name": "o", "target": "output", "args": [{"tuple": [{"ref": "s"}, {"dict": {}}]}]},
    ]
    twice(
        raw,
        "/create_custom_loss",
        session_id=raw.new_session(),
        custom_loss_seq_id=0,
        name="total",
        inputs=[{"name": "logprobs", "rank": 1}],
        graph={"format": 1, "nodes": nodes},
    )


@pytest.mark.row("dedup-copy", call="raw HTTP")
def test_a_copy_asked_for_twice_with_one_key_is_one_copy(raw: RawClient) -> None:
    model_id = raw.new_model()
    save = raw.post("/save_weights", model_id=model_id, seq_id=1, path="source")
    source = raw.result(save["request_id"])["path"]

    def copy(key: str) -> str:
        body = {"source_path": source, "destination_project_id": "archive"}
        return raw.http.post("/copy_weights", json=body, headers={"X-Idempotency-Key": key}).json()[
            "tinker_path"
        ]

    key = str(uuid.uuid4())
    first, again, other = copy(key), copy(key), copy(str(uuid.uuid4()))
    assert first == again != other
