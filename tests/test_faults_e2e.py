"""Bad input and dying services: each gets a clear answer, and the next request works."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from numpy.typing import NDArray

from tests.data import some_tokens, supervised
from tests.raw import RawClient, skip_a_turn
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"


@pytest.fixture(scope="module")
def raw(stack: Stack) -> RawClient:
    return RawClient(stack)


def dense(values: NDArray[Any]) -> pb.Tensor:
    dtype = pb.DTYPE_INT64 if values.dtype == np.int64 else pb.DTYPE_FLOAT32
    return pb.Tensor(dense=values.tobytes(), dtype=dtype, shape=values.shape)


def request(model_id: str, seq_id: int) -> pb.ForwardBackwardRequest:
    """A good request of one datum."""
    tokens = np.array([5, 6, 7], np.int32)
    datum = pb.Datum(
        model_input=[pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=tokens.tobytes()))],
        loss_fn_inputs={
            "target_tokens": dense(np.array([6, 7, 8])),
            "weights": dense(np.ones(3, np.float32)),
        },
    )
    return pb.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, data=[datum], loss_fn="cross_entropy")


def wrong_dtype(message: pb.ForwardBackwardRequest) -> None:
    message.data[0].loss_fn_inputs["target_tokens"].dtype = pb.DTYPE_FLOAT32


def unknown_dtype(message: pb.ForwardBackwardRequest) -> None:
    message.data[0].loss_fn_inputs["weights"].dtype = pb.DTYPE_BFLOAT16


def token_outside_vocabulary(message: pb.ForwardBackwardRequest) -> None:
    tokens = np.array([5, 10**6, 7], np.int32).tobytes()
    message.data[0].model_input[0].encoded_text.tokens = tokens


def target_outside_vocabulary(message: pb.ForwardBackwardRequest) -> None:
    message.data[0].loss_fn_inputs["target_tokens"].CopyFrom(dense(np.array([6, -1, 8])))


def unknown_loss(message: pb.ForwardBackwardRequest) -> None:
    message.loss_fn = "mean_squared_surprise"


def nan_weight(message: pb.ForwardBackwardRequest) -> None:
    weights = np.array([1, np.nan, 1], np.float32)
    message.data[0].loss_fn_inputs["weights"].CopyFrom(dense(weights))


def empty_batch(message: pb.ForwardBackwardRequest) -> None:
    del message.data[:]


def empty_datum(message: pb.ForwardBackwardRequest) -> None:
    message.data[0].model_input[0].encoded_text.tokens = b""


def wrong_shape(message: pb.ForwardBackwardRequest) -> None:
    message.data[0].loss_fn_inputs["weights"].CopyFrom(dense(np.ones(2, np.float32)))


def missing_targets(message: pb.ForwardBackwardRequest) -> None:
    del message.data[0].loss_fn_inputs["target_tokens"]


@pytest.mark.row("bad-batch", "failed-future", call="raw HTTP")
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (wrong_dtype, "target_tokens"),
        (unknown_dtype, "weights"),
        (token_outside_vocabulary, "vocabulary"),
        (target_outside_vocabulary, "vocabulary"),
        (unknown_loss, "mean_squared_surprise"),
        (nan_weight, "weights"),
        (empty_batch, "datum"),
        (empty_datum, "datum 0"),
        (wrong_shape, "weights"),
        (missing_targets, "target_tokens"),
    ],
)
def test_a_bad_batch_fails_as_the_user_s_and_the_next_one_works(
    raw: RawClient, spoil: Callable[[pb.ForwardBackwardRequest], None], problem: str
) -> None:
    model_id = raw.new_model()
    bad = request(model_id, 1)
    spoil(bad)
    failure = raw.forward_backward(bad)
    assert failure["category"] == "user"
    assert problem in failure["error"]
    assert "protobuf" in raw.forward_backward(request(model_id, 2))


@pytest.mark.row("bad-body", call="raw HTTP")
def test_a_malformed_protobuf_gets_400_and_the_next_request_works(raw: RawClient) -> None:
    model_id = raw.new_model()
    answer = raw.http.post("/forward_backward", content=b"\xff\xfe nothing")
    assert answer.status_code == 400
    assert "protobuf" in answer.json()["detail"]
    assert "protobuf" in raw.forward_backward(request(model_id, 1))


@pytest.mark.row("large-body", call="raw HTTP")
def test_a_body_of_100_mib_gets_413_and_the_next_request_works(raw: RawClient) -> None:
    model_id = raw.new_model()
    answer = raw.http.post("/forward_backward", content=b"\0" * 100 * 2**20)
    assert answer.status_code == 413
    assert "MAX_BODY_MIB" in answer.json()["detail"]
    assert "protobuf" in raw.forward_backward(request(model_id, 1))


@pytest.mark.row("api-key", call="ServiceClient(api_key=)")
def test_a_bad_key_gets_401_from_both_services(stack: Stack) -> None:
    with pytest.raises(tinker.AuthenticationError, match="API key"):
        tinker.ServiceClient(base_url=stack.base_url, api_key="tml-wrong").create_lora_training_client(
            MODEL
        ).result()
    for path in ("create_session", "asample", "retrieve_future"):
        answer = httpx.post(f"{stack.base_url}/api/v1/{path}", json={}, headers={"X-API-Key": "tml-wrong"})
        assert answer.status_code == 401, path


@pytest.mark.parametrize("adam", [{"learning_rate": "fast"}, {"beta1": 1.5}, {"learning_rate": -1}, None])
def test_bad_optimizer_parameters_fail_as_the_user_s(raw: RawClient, adam: object) -> None:
    model_id = raw.new_model()
    body = {"model_id": model_id, "seq_id": 1, "adam_params": adam}
    promise = raw.http.post("/optim_step", json=body).json()
    assert raw.result(promise["request_id"])["category"] == "user"
    assert "protobuf" in raw.forward_backward(request(model_id, 2))


@pytest.mark.row("unknown-model", call="raw HTTP")
def test_an_operation_of_an_unknown_model_fails_through_its_future(raw: RawClient) -> None:
    failure = raw.forward_backward(request(f"{uuid.uuid4()}:train:0", 1))
    assert failure["category"] == "user"
    assert "not loaded" in failure["error"]


@pytest.mark.row("lost-promise", call="raw HTTP")
def test_an_unknown_promise_is_lost(raw: RawClient) -> None:
    assert raw.poll("nothing").status_code == 410


@pytest.mark.row("restart-sample", call="SamplingClient.sample")
def test_killing_the_sample_service_mid_run_does_not_fail_the_run(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    trainer = service.create_lora_training_client(MODEL, rank=4).result()
    trainer.forward_backward([supervised(some_tokens(1))], "cross_entropy").result()
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    sampler = trainer.save_weights_and_get_sampling_client().result()
    prompt = tinker.ModelInput.from_ints(some_tokens(1))
    params = tinker.SamplingParams(max_tokens=60, stop=[])
    sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=1)).result()
    running = [sampler.sample(prompt, 2, params) for _ in range(4)]
    stack.kill("sample")
    while_down = sampler.sample(prompt, 1, params)
    restarted = threading.Thread(target=stack.restart, args=("sample",))
    restarted.start()
    for future in [*running, while_down]:
        assert all(len(sequence.tokens) == 60 for sequence in future.result(timeout=300).sequences)
    restarted.join()
    # Training went on meanwhile, and new weights reach the new process.
    trainer.forward_backward([supervised(some_tokens(2))], "cross_entropy").result()
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    assert (
        trainer.save_weights_and_get_sampling_client().result().sample(prompt, 1, params).result().sequences
    )


@pytest.mark.row(
    "restart-train",
    call="TrainingClient.forward(…).result(), create_training_client_from_state_with_optimizer",
)
def test_after_a_restart_of_the_train_service_a_run_resumes_from_its_saved_state(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    trainer = service.create_lora_training_client(MODEL, rank=4).result()
    data = [supervised(some_tokens(1))]
    before = trainer.forward(data, "cross_entropy").result().metrics
    path = trainer.save_state("safe").result().path
    skip_a_turn(trainer)
    waiting = ThreadPoolExecutor(1).submit(trainer.forward(data, "cross_entropy").result)
    model_id = trainer.get_info().model_id
    raw = RawClient(stack)
    while not raw.is_running(f"{model_id}:4"):
        assert not waiting.done()
    stack.kill("train")
    stack.restart("train")
    # Work that the service took with it ends with a reason, and not with polls for ever.
    with pytest.raises(tinker.RequestFailedError) as caught:
        waiting.result(timeout=120)
    assert caught.value.category == "server"
    with pytest.raises(tinker.RequestFailedError, match="not loaded"):
        trainer.forward(data, "cross_entropy").result()
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert resumed.forward(data, "cross_entropy").result().metrics == before
