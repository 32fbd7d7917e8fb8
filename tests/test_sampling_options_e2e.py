"""What a sample can be asked besides its tokens, with the SDK through the gateway, against the trainer's forward."""

import asyncio
import multiprocessing
import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
import tinker
import torch
from numpy.typing import NDArray
from tinker.lib.internal_client_holder import InternalClientHolder
from transformers import AutoTokenizer

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_common.settings import locate_model
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
VOCABULARY = 2048
PARITY = 1e-4
"""As in test_sampling_e2e.py, for its reasons."""
ONE = tinker.SamplingParams(max_tokens=1)


@dataclass(frozen=True)
class Trained:
    """An adapter on all modules and the head, far from zero, and its sampler."""

    trainer: tinker.TrainingClient
    sampler: tinker.SamplingClient

    def distributions(self, tokens: list[int]) -> NDArray[np.float32]:
        """The trainer's logprobs of the whole vocabulary after each token but the last."""
        shape = (len(tokens) - 1, VOCABULARY)
        every_id = np.broadcast_to(np.arange(VOCABULARY), shape)
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(np.ascontiguousarray(every_id)),
                "weights": tinker.TensorData.from_numpy(np.ones(shape, np.float32)),
            },
        )
        return logprobs_of(self.trainer.forward([datum], "cross_entropy").result())[0]


@pytest.fixture(scope="module")
def trained(stack: Stack) -> Iterator[Trained]:
    with tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as service:
        trainer = service.create_lora_training_client(MODEL, rank=8, seed=1).result()
        for _ in range(4):
            data = [supervised(some_tokens(seed)) for seed in range(3)]
            trainer.forward_backward(data, "cross_entropy").result()
            trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
        yield Trained(trainer, trainer.save_weights_and_get_sampling_client().result())


def _prompt(tokens: list[int]) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(tokens)


def _targets(rows: int) -> Any:
    """Ids for five columns, most cells without one."""
    random = np.random.default_rng(3)
    ids = random.integers(0, VOCABULARY, (rows, 5))
    return torch.from_numpy(np.where(random.random((rows, 5)) < 0.7, -1, ids))


@pytest.mark.row("target-prompt", call="sample(target_prompt_logprobs=)")
@pytest.mark.parametrize("sparse", [False, True])
def test_target_logprobs_equal_the_trainer_s_and_keep_their_layout(trained: Trained, sparse: bool) -> None:
    tokens = some_tokens(5, 40)
    ids = _targets(39)
    data = tinker.TensorData
    asked = data.from_torch_sparse(ids, pad_value=-1) if sparse else data.from_torch(ids)
    response = trained.sampler.sample(_prompt(tokens), 1, ONE, target_prompt_logprobs=asked).result()
    answered = response.target_prompt_logprobs
    assert answered is not None
    assert (answered.shape, answered.dtype) == ([39, 5], "float32")
    assert answered.sparse_crow_indices == asked.sparse_crow_indices
    assert answered.sparse_col_indices == asked.sparse_col_indices
    assert (answered.sparse_crow_indices is not None) == sparse
    scores = answered.to_numpy()
    named = ids.numpy() != -1
    expected = np.take_along_axis(trained.distributions(tokens), np.where(named, ids, 0), 1)
    np.testing.assert_allclose(scores[named], expected[named], atol=PARITY)
    assert not scores[~named].any()


def test_a_target_matrix_with_too_few_rows_is_refused_with_the_right_number(trained: Trained) -> None:
    asked = tinker.TensorData.from_torch(torch.ones((3, 1), dtype=torch.int64))
    with pytest.raises(tinker.RequestFailedError, match="needs 7"):
        trained.sampler.sample(_prompt(some_tokens(1, 8)), 1, ONE, target_prompt_logprobs=asked).result()


@pytest.mark.row("alt-tokens", call="sample(prompt_alt_tokens_k=)")
def test_alternatives_have_the_trainer_s_logprobs_and_follow_its_distribution(trained: Trained) -> None:
    tokens, k, temperature = some_tokens(6, 12), 2000, 0.7
    params = tinker.SamplingParams(max_tokens=1, temperature=temperature, seed=8)
    drawn = (
        trained.sampler.sample(_prompt(tokens), 1, params, prompt_alt_tokens_k=k).result().prompt_alt_tokens
    )
    assert drawn is not None
    ids, scores = drawn.tokens.to_numpy(), drawn.logprobs.to_numpy()
    assert (ids.shape, ids.dtype, scores.dtype) == ((11, k), np.int64, np.float32)
    distributions = trained.distributions(tokens)
    np.testing.assert_allclose(scores, np.take_along_axis(distributions, ids, 1), atol=PARITY)
    for row, logprobs in enumerate(distributions):
        weights = np.exp(logprobs.astype(np.float64) / temperature)
        wanted = k * weights / weights.sum()
        likely = np.flatnonzero(wanted > 50)
        seen = np.bincount(ids[row], minlength=VOCABULARY)
        # Seeded, so the same in every run: five standard deviations of a binomial count.
        spread = np.sqrt(wanted * (1 - wanted / k))
        assert (np.abs(seen - wanted)[likely] <= 5 * spread[likely] + 1).all()


def test_top_logprobs_of_prompt_and_sample_are_the_trainer_s_best(trained: Trained) -> None:
    tokens = some_tokens(7, 20)
    params = tinker.SamplingParams(max_tokens=5, temperature=0.0, stop=[])
    response = trained.sampler.sample(
        _prompt(tokens), 1, params, topk_prompt_logprobs=4, topk_sample_logprobs=3
    ).result()
    (sequence,) = response.sequences
    whole = trained.distributions(tokens + sequence.tokens)
    prompt_rows, sample_rows = response.topk_prompt_logprobs, sequence.topk_logprobs
    assert prompt_rows is not None and sample_rows is not None  # noqa: PT018  (one claim: both are there)
    assert prompt_rows[0] is None
    for index, row in enumerate([*prompt_rows[1:], *sample_rows]):
        k = 4 if index < 19 else 3
        assert row is not None
        found = np.array([value for _, value in row])
        np.testing.assert_allclose(found, -np.sort(-whole[index])[:k], atol=PARITY)
        np.testing.assert_allclose(found, whole[index][[token for token, _ in row]], atol=PARITY)
    assert sequence.tokens == [row[0][0] for row in sample_rows if row]


def test_only_the_last_prompt_logprobs_are_computed_and_the_rest_is_cached(trained: Trained) -> None:
    tokens = some_tokens(8, 120)
    first = trained.sampler.compute_logprobs(_prompt(tokens)).result()
    response = trained.sampler.sample(
        _prompt(tokens), 3, ONE, include_prompt_logprobs=True, prompt_logprobs_last_n=10
    ).result()
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs[:110] == [None] * 110
    assert response.prompt_logprobs[110:] == pytest.approx(first[110:], abs=PARITY)
    # Of one prompt, although three samples were made of it.
    assert 0 < response.prompt_cache_hit_tokens <= 110


def test_stop_strings_end_a_sample_in_either_form(trained: Trained) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(locate_model(MODEL))
    prompt = _prompt(some_tokens(9, 10))

    def sample(stop: str | list[str]) -> tinker.SampledSequence:
        params = tinker.SamplingParams(max_tokens=20, temperature=0.0, stop=stop)
        return trained.sampler.sample(prompt, 1, params).result().sequences[0]

    free = sample([]).tokens
    pairs = (tokenizer.decode(free[start : start + 2]) for start in range(2, 18))
    text = next(pair for pair in pairs if pair.isascii() and pair.strip())  # no half of a character
    until = next(count for count in range(21) if text in tokenizer.decode(free[:count]))
    for stop in (text, [text], ["never said so", text]):
        ended = sample(stop)
        assert (ended.tokens, ended.stop_reason) == (free[:until], "stop")


def test_the_largest_seed_works_and_its_samples_differ(trained: Trained) -> None:
    params = tinker.SamplingParams(max_tokens=12, seed=2**63 - 1, stop=[])
    prompt = _prompt(some_tokens(1, 10))
    one, two = (trained.sampler.sample(prompt, 4, params).result() for _ in range(2))
    assert [item.tokens for item in one.sequences] == [item.tokens for item in two.sequences]
    assert len({tuple(item.tokens) for item in one.sequences}) == 4


def test_an_image_is_refused_in_words_that_say_why(trained: Trained) -> None:
    image = tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=4)
    prompt = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[5, 6]), image])
    with pytest.raises(tinker.RequestFailedError, match="no vision tower"):
        trained.sampler.sample(prompt, 1, ONE).result()


def _sample_in_another_process(pickled: bytes) -> list[str]:
    """As a client whose server does not offer `join_sampling_session`: copies choose their numbers at random."""
    offered: Any = InternalClientHolder.get_client_config

    def not_offered(holder: InternalClientHolder) -> Any:
        return offered(holder).model_copy(update={"sample_join_sampling_session": False})

    with patch.object(InternalClientHolder, "get_client_config", not_offered):
        sampler: tinker.SamplingClient = pickle.loads(pickled)
    futures = [sampler.sample(_prompt([5, 6, 7]), 1, ONE) for _ in range(4)]
    return [future.result(timeout=120).sequences[0].sequence_id or "" for future in futures]


def test_copies_that_choose_their_own_numbers_sample_in_two_processes_at_once(trained: Trained) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        pickled = pickle.dumps(trained.sampler)
        ids = [pool.submit(_sample_in_another_process, pickled) for _ in range(2)]
        everything = [item for future in ids for item in future.result(timeout=240)]
    # <sampling session>:<seq_id>:<sample>; the number of a copy is the seq_id's 10^9s, drawn from 10^9.
    copies = {int(item.rsplit(":", 2)[1]) // 10**9 for item in everything}
    assert len(set(everything)) == 8
    assert len(copies) == 2
    assert 0 not in copies


def _running(stack: Stack) -> float:
    """Requests that SGLang's scheduler works on, as of its last health check (every second here)."""
    text = httpx.get(f"{stack.service_url('sample')}/metrics", timeout=30).text
    return sum(map(float, re.findall(r"^tinsmith_engine_running_requests{.*} (\S+)$", text, re.M)))


def _poll(stack: Stack, request_id: str) -> Any:
    url, headers = f"{stack.base_url}/api/v1/retrieve_future", {"X-API-Key": stack.api_key}
    return httpx.post(url, json={"request_id": request_id}, headers=headers, timeout=60).json()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.2)


async def test_a_cancelled_sample_frees_its_place_in_the_engine_and_others_go_on(stack: Stack) -> None:
    with tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as service:
        sampler = await service.create_sampling_client(base_model=MODEL)
        params = tinker.SamplingParams(max_tokens=1500, stop=[])

        async def sample(count: int) -> tinker.SampleResponse:
            return await sampler.sample(_prompt(some_tokens(count, 8)), count, params)

        await _until(lambda: _running(stack) == 0)
        given_up = asyncio.create_task(sample(4))
        await _until(lambda: _running(stack) == 4)
        kept = asyncio.create_task(sample(1))
        await _until(lambda: _running(stack) == 5)
        given_up.cancel()
        await _until(lambda: _running(stack) == 1)
        assert not kept.done()
        promise = f"{sampler._sampling_session_id}:0"  # pyright: ignore[reportPrivateUsage]
        ended = {"error": "cancelled by the client", "category": "user"}
        assert await asyncio.to_thread(_poll, stack, promise) == ended
        assert len((await kept).sequences[0].tokens) == 1500
