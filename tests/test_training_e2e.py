"""Training through the gateway with the SDK."""

import numpy as np
import pytest
import tinker
import torch

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
ADAM = tinker.AdamParams(learning_rate=1e-2)


def step(trainer: tinker.TrainingClient, data: list[tinker.Datum]) -> float:
    """One forward_backward and optim_step, submitted together as the cookbook does."""
    passed, stepped = trainer.forward_backward(data, "cross_entropy"), trainer.optim_step(ADAM)
    assert stepped.result().metrics
    return passed.result().metrics["loss:sum"]


def test_the_loss_on_one_batch_falls(trainer: tinker.TrainingClient) -> None:
    data = [supervised(some_tokens(seed)) for seed in range(4)]
    losses = [step(trainer, data) for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.row("forward-only", call="TrainingClient.forward")
def test_forward_answers_the_same_logprobs_and_trains_nothing(trainer: tinker.TrainingClient) -> None:
    data = [supervised(some_tokens(3)), supervised(some_tokens(4, 11))]
    before = logprobs_of(trainer.forward(data, "cross_entropy").result())
    trained = logprobs_of(trainer.forward_backward(data, "cross_entropy").result())
    for a, b in zip(before, trained, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [len(a) for a in before] == [23, 10]


@pytest.mark.row("chunks", call="TrainingClient.forward")
def test_a_batch_in_three_chunks_keeps_its_order(trainer: tinker.TrainingClient) -> None:
    # The SDK's default, less than the server offers. The SDK sends the first chunk last.
    vars(trainer.holder._client_config)["fwdbwd_max_chunk_len"] = 1024  # pyright: ignore[reportPrivateUsage]
    lengths = [3 + index % 5 for index in range(2_100)]
    data = [supervised(some_tokens(index, length)) for index, length in enumerate(lengths)]
    output = trainer.forward(data, "cross_entropy").result()
    assert [len(values) for values in logprobs_of(output)] == [length - 1 for length in lengths]
    alone = logprobs_of(trainer.forward([data[2_050]], "cross_entropy").result())[0]
    np.testing.assert_allclose(logprobs_of(output)[2_050], alone, atol=1e-5)


@pytest.mark.row("custom-client", call="forward_backward_custom")
def test_a_custom_loss_of_the_client_equals_the_built_in_one(service: tinker.ServiceClient) -> None:
    data = [supervised(some_tokens(seed)) for seed in range(3)]

    def negative_sum(
        data: list[tinker.Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        return -torch.cat(logprobs).sum(), {}

    after = []
    for custom in (True, False):
        trainer = service.create_lora_training_client(MODEL, rank=8, seed=7).result()
        if custom:
            trainer.forward_backward_custom(data, negative_sum).result()
        else:
            trainer.forward_backward(data, "cross_entropy").result()
        trainer.optim_step(ADAM).result()
        after.append(logprobs_of(trainer.forward(data, "cross_entropy").result()))
    for a, b in zip(*after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_two_clients_at_once_get_what_each_would_get_alone(service: tinker.ServiceClient) -> None:
    data = {seed: [supervised(some_tokens(seed))] for seed in (1, 2)}

    def trainers() -> dict[int, tinker.TrainingClient]:
        return {
            seed: service.create_lora_training_client(MODEL, rank=4 * seed, seed=seed).result()
            for seed in data
        }

    def train_together() -> dict[int, list[float]]:
        clients, found = trainers(), {seed: list[float]() for seed in data}
        for _ in range(4):
            passes = {s: client.forward_backward(data[s], "cross_entropy") for s, client in clients.items()}
            steps = [client.optim_step(ADAM) for client in clients.values()]
            for seed, passed in passes.items():
                found[seed].append(passed.result().metrics["loss:sum"])
            for stepped in steps:
                stepped.result()
        return found

    together = train_together()
    alone = {seed: [step(client, data[seed]) for _ in range(4)] for seed, client in trainers().items()}
    for seed in data:
        np.testing.assert_allclose(together[seed], alone[seed], rtol=1e-5)


@pytest.mark.row("get-info", "create-model", call="get_info, get_tokenizer")
def test_info_names_base_model_rank_and_a_tokenizer_that_loads(trainer: tinker.TrainingClient) -> None:
    info = trainer.get_info()
    assert (info.model_data.model_name, info.lora_rank) == (MODEL, 8)
    tokenizer = trainer.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("What is 2 + 3?")) == "What is 2 + 3?"


@pytest.mark.row("capabilities", call="get_server_capabilities")
def test_capabilities_list_the_served_model(stack: Stack) -> None:
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)
    served = rest.get_server_capabilities().result().supported_models
    assert [model.model_name for model in served] == [MODEL]
    assert (served[0].max_context_length or 0) >= 1024


def test_an_unknown_base_model_fails_with_the_list_of_known_ones(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match=MODEL):
        service.create_lora_training_client("no/such-model", rank=8).result()


def test_a_rank_over_the_limit_fails_with_the_limit(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match="MAX_LORA_RANK"):
        service.create_lora_training_client(MODEL, rank=4096).result()
