"""Sharing and bounds through the real SDK, on a service of its own: rows of 128 tokens, four operations a model."""

from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
import tinker

from benchmarks.train_service import API_KEY, TrainService
from tests.data import logprobs_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = "tinsmith/tiny-qwen3"
ADAM = tinker.AdamParams(learning_rate=1e-3)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainService]:
    env = {"TOKENS_PER_PASS": "128", "MAX_QUEUED_OPERATIONS_PER_MODEL": "4"}
    with TrainService(tmp_path_factory.mktemp("bounded"), env) as service:
        yield service


@pytest.fixture
def client(bounded: TrainService) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=bounded.url, api_key=API_KEY) as client:
        yield client


def new_trainer(client: tinker.ServiceClient) -> tinker.TrainingClient:
    return client.create_lora_training_client(base_model=MODEL, rank=8, seed=1).result()


def random_datum(seed: int, length: int) -> tinker.Datum:
    tokens = np.random.default_rng(seed).integers(100, 900, length + 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(tokens[1:]),
            "weights": tinker.TensorData.from_numpy(np.ones(length, np.float32)),
        },
    )


def grad_norm(trainer: tinker.TrainingClient) -> float:
    metrics = trainer.optim_step(ADAM).result().metrics
    assert metrics is not None
    return metrics["grad_norm"]


def test_a_huge_pass_is_bitwise_the_same_beside_small_ones_which_do_not_wait_for_it(
    client: tinker.ServiceClient,
) -> None:
    huge = [random_datum(seed, 127) for seed in range(60)]
    small = [random_datum(99, 8)]
    alone = new_trainer(client)
    expected = logprobs_of(alone.forward_backward(huge, "cross_entropy").result())
    expected_norm = grad_norm(alone)
    hog, other = new_trainer(client), new_trainer(client)
    running: Future[tinker.ForwardBackwardOutput] = hog.forward_backward(huge, "cross_entropy").future()
    answers = [logprobs_of(other.forward_backward(small, "cross_entropy").result())[0]]
    assert not running.done(), "the small one came first"
    while not running.done():
        answers.append(logprobs_of(other.forward_backward(small, "cross_entropy").result())[0])
    for mine, theirs in zip(logprobs_of(running.result()), expected, strict=True):
        assert (mine == theirs).all()
    assert grad_norm(hog) == expected_norm
    assert all((answer == answers[0]).all() for answer in answers)


def test_a_client_over_its_bound_backs_off_and_loses_nothing(
    client: tinker.ServiceClient, bounded: TrainService
) -> None:
    batches = [[random_datum(4 * number + k, 120) for k in range(4)] for number in range(9)]
    patient, eager = new_trainer(client), new_trainer(client)
    expected = [logprobs_of(patient.forward_backward(batch, "cross_entropy").result()) for batch in batches]
    running = [eager.forward_backward(batch, "cross_entropy") for batch in batches]
    step = eager.optim_step(ADAM)
    for future, wanted in zip(running, expected, strict=True):
        for mine, theirs in zip(logprobs_of(future.result()), wanted, strict=True):
            assert (mine == theirs).all()
    metrics = step.result().metrics
    assert metrics is not None
    assert metrics["optimizer_step"] == 1
    # Passes of one row each, added up in the same order.
    assert metrics["grad_norm"] == grad_norm(patient)
    assert bounded.metrics()["tinsmith_train_refused_operations_total", "model"] > 0


def test_a_session_that_ends_frees_its_model_at_once_beside_a_busy_one(
    client: tinker.ServiceClient, bounded: TrainService
) -> None:
    hog = new_trainer(client)
    with tinker.ServiceClient(base_url=bounded.url, api_key=API_KEY) as leaving:
        new_trainer(leaving).forward_backward([random_datum(0, 8)], "cross_entropy").result()
        before = bounded.metrics()["tinsmith_train_lanes", ""]
        huge = [random_datum(seed, 127) for seed in range(80)]
        running = hog.forward_backward(huge, "cross_entropy").future()
    while (lanes := bounded.metrics()["tinsmith_train_lanes", ""]) == before and not running.done():
        pass
    assert not running.done()
    assert lanes == before - 1
    running.result()
