"""Sampling through the gateway with the SDK, on the base model and on trained weights."""

import numpy as np
import pytest
import tinker
from numpy.typing import NDArray

from tests.data import logprobs_of, some_tokens, supervised

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
PARITY = 1e-4
"""fp32 on both sides; the measured maximum is 1.9e-6, with log-probabilities down to -30."""


def trained(service: tinker.ServiceClient, *, unembed: bool = True) -> tinker.TrainingClient:
    """A model whose adapter is far from zero."""
    trainer = service.create_lora_training_client(MODEL, rank=8, seed=1, train_unembed=unembed).result()
    data = [supervised(some_tokens(seed)) for seed in range(4)]
    for _ in range(5):
        trainer.forward_backward(data, "cross_entropy").result()
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return trainer


def trainer_logprobs(trainer: tinker.TrainingClient, tokens: list[int]) -> NDArray[np.float32]:
    return logprobs_of(trainer.forward([supervised(tokens)], "cross_entropy").result())[0]


@pytest.mark.row("prompt-logprobs", "save-sampler-snapshot", call="compute_logprobs")
@pytest.mark.parametrize("unembed", [True, False])
def test_sampler_prompt_logprobs_equal_the_trainer_s_for_the_same_weights(
    service: tinker.ServiceClient, unembed: bool
) -> None:
    trainer = trained(service, unembed=unembed)
    sampler = trainer.save_weights_and_get_sampling_client().result()
    base = service.create_sampling_client(base_model=MODEL).result()
    worst, moved = 0.0, 0.0
    for seed in range(6):
        tokens = some_tokens(seed, 20 + 7 * seed)
        ours = trainer_logprobs(trainer, tokens)
        prompt = tinker.ModelInput.from_ints(tokens)
        scores = sampler.compute_logprobs(prompt).result()
        assert scores[0] is None
        worst = max(worst, float(np.abs(np.array(scores[1:], np.float64) - ours).max()))
        plain = base.compute_logprobs(prompt).result()
        moved = max(moved, float(np.abs(np.array(plain[1:], np.float64) - ours).max()))
    print(
        f"train_unembed={unembed}: sampler and trainer differ by at most {worst:.2e}; from the base {moved:.2f}"
    )
    assert worst <= PARITY
    assert moved > 0.5, "the adapter was not applied, so the comparison would show nothing"


@pytest.mark.row("sample-logprobs", call="sample(temperature=)")
def test_sampled_logprobs_are_the_model_s(service: tinker.ServiceClient) -> None:
    trainer = trained(service)
    sampler = trainer.save_weights_and_get_sampling_client().result()
    prompt = some_tokens(1)
    for temperature in (1.0, 0.5):
        params = tinker.SamplingParams(max_tokens=12, seed=5, temperature=temperature, stop=[])
        sample = sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params).result().sequences[0]
        ours = trainer_logprobs(trainer, prompt + sample.tokens)[len(prompt) - 1 :]
        np.testing.assert_allclose(np.array(sample.logprobs), ours, atol=PARITY)


@pytest.mark.row("seed", "sample-four", "asample", call="sample(num_samples=4, seed=)")
def test_a_seed_repeats_and_samples_of_one_request_differ(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    prompt = tinker.ModelInput.from_ints(some_tokens(1))
    params = tinker.SamplingParams(max_tokens=16, seed=11, stop=[])

    def draw() -> list[list[int]]:
        response = sampler.sample(prompt, num_samples=4, sampling_params=params).result()
        assert len({sequence.sequence_id for sequence in response.sequences}) == 4
        return [sequence.tokens for sequence in response.sequences]

    first = draw()
    assert first == draw()
    assert len({tuple(tokens) for tokens in first}) == 4


def test_without_a_seed_two_requests_differ(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    prompt = tinker.ModelInput.from_ints(some_tokens(1))
    params = tinker.SamplingParams(max_tokens=16, stop=[])
    one, two = (sampler.sample(prompt, 1, params).result().sequences[0].tokens for _ in range(2))
    assert one != two


@pytest.mark.row("stop-tokens", call="sample(stop=[id])")
def test_a_stop_token_ends_the_sample_and_is_its_last_token(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    prompt = tinker.ModelInput.from_ints(some_tokens(1))
    free = (
        sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=16, seed=3, stop=[])).result().sequences[0]
    )
    assert (len(free.tokens), free.stop_reason) == (16, "length")
    stop = free.tokens[5]
    params = tinker.SamplingParams(max_tokens=16, seed=3, stop=[stop])
    ended = sampler.sample(prompt, 1, params).result().sequences[0]
    assert ended.stop_reason == "stop"
    assert ended.tokens == free.tokens[: free.tokens.index(stop) + 1]


def test_many_requests_at_once_all_answer(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    params = tinker.SamplingParams(max_tokens=4, stop=[])
    futures = [sampler.sample(tinker.ModelInput.from_ints(some_tokens(i, 8)), 1, params) for i in range(100)]
    assert all(len(future.result().sequences[0].tokens) == 4 for future in futures)


@pytest.mark.row("save-sampler-snapshot", call="save_weights_and_get_sampling_client")
def test_a_snapshot_keeps_the_weights_it_was_made_of(service: tinker.ServiceClient) -> None:
    trainer = trained(service)
    prompt = tinker.ModelInput.from_ints(some_tokens(2))
    early = trainer.save_weights_and_get_sampling_client().result()
    before = early.compute_logprobs(prompt).result()
    trainer.forward_backward([supervised(some_tokens(9))], "cross_entropy").result()
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    late = trainer.save_weights_and_get_sampling_client().result()
    assert early.compute_logprobs(prompt).result()[1:] == pytest.approx(before[1:], abs=1e-5)
    assert late.compute_logprobs(prompt).result()[1:] != pytest.approx(before[1:], abs=1e-2)


@pytest.mark.row(
    "save-sampler-named",
    "create-sampling-session",
    call="save_weights_for_sampler, create_sampling_client(model_path=)",
)
def test_named_sampler_weights_are_sampled_by_path(service: tinker.ServiceClient) -> None:
    trainer = trained(service)
    path = trainer.save_weights_for_sampler("chosen").result().path
    assert path.endswith("/sampler_weights/chosen")
    sampler = service.create_sampling_client(model_path=path).result()
    tokens = some_tokens(4)
    scores = sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens)).result()
    np.testing.assert_allclose(
        np.array(scores[1:], np.float64), trainer_logprobs(trainer, tokens), atol=PARITY
    )


@pytest.mark.row("bad-prompt", call="SamplingClient.sample")
@pytest.mark.parametrize(
    ("tokens", "problem"),
    [([], "empty"), ([10**6], "vocabulary"), ([5] * 100_000, "context")],
)
def test_an_impossible_prompt_gets_a_clear_error_and_the_next_request_works(
    service: tinker.ServiceClient, tokens: list[int], problem: str
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    params = tinker.SamplingParams(max_tokens=4)
    with pytest.raises((tinker.RequestFailedError, tinker.BadRequestError), match=f"(?i){problem}"):
        sampler.sample(tinker.ModelInput.from_ints(tokens), 1, params).result()
    assert sampler.sample(tinker.ModelInput.from_ints([5, 6]), 1, params).result().sequences
