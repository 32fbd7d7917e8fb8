"""Section 3.5: every option of a sample, computed again by Hugging Face where it has a number."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from torch import Tensor

from tests.conformance import reference
from tests.data import some_tokens
from tests.raw import MODEL, RawClient
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

PARITY = 2e-4
"""Two float32 implementations of four layers, at log-probabilities of order 10."""
CHAT = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def base() -> Any:
    return reference.base_model()


@pytest.fixture(scope="module")
def sampler(stack: Stack) -> Iterator[tinker.SamplingClient]:
    with tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as service:
        yield service.create_sampling_client(base_model=MODEL).result()


def one(sampler: tinker.SamplingClient, tokens: list[int], **params: Any) -> Any:
    options = tinker.SamplingParams(**params)
    return sampler.sample(tinker.ModelInput.from_ints(tokens), 1, options).result().sequences[0]


def scores(base: Any, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return reference.next_logprobs(base, tokens)


@pytest.mark.row("stop-absent", "stop-empty", call="sample(stop=None), sample(stop=[])")
def test_without_stops_the_end_of_text_ends_a_sample_and_with_none_nothing_does(
    sampler: tinker.SamplingClient,
) -> None:
    tokenizer = reference.tokenizer()
    prompt = tokenizer.encode(CHAT)
    ended = one(sampler, prompt, max_tokens=100, seed=3)
    assert ended.stop_reason == "stop"
    assert ended.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ended.tokens[:-1]
    assert len(ended.logprobs) == len(ended.tokens)
    endless = one(sampler, prompt, max_tokens=100, seed=3, stop=[])
    assert (endless.stop_reason, len(endless.tokens)) == ("length", 100)
    assert endless.tokens[: len(ended.tokens)] == ended.tokens


@pytest.mark.row("stop-strings", call="sample(stop=str), sample(stop=[str])")
def test_a_stop_string_ends_a_sample_and_is_part_of_it(sampler: tinker.SamplingClient) -> None:
    tokenizer = reference.tokenizer()
    prompt = some_tokens(1)
    free = one(sampler, prompt, max_tokens=24, seed=4, stop=[])
    # Some token in the middle whose text is in no earlier one.
    stop, index = next(
        (text, index)
        for index, token in enumerate(free.tokens)
        if index > 5
        and (text := tokenizer.decode([token])).isalnum()
        and text not in tokenizer.decode(free.tokens[:index])
    )
    for given in (stop, [stop], ["never so", stop]):
        ended = one(sampler, prompt, max_tokens=24, seed=4, stop=given)
        assert ended.stop_reason == "stop"
        assert ended.tokens == free.tokens[: index + 1]


@pytest.mark.row("top-k-top-p", call="sample(top_k=1), sample(top_p=1e-6), sample(temperature=0)")
def test_the_narrowest_choice_is_the_likeliest_token(sampler: tinker.SamplingClient, base: Any) -> None:
    prompt = some_tokens(2)
    greedy = list(prompt)
    for _ in range(8):
        greedy.append(int(scores(base, greedy)[-1].argmax()))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.0}):
        assert one(sampler, prompt, max_tokens=8, stop=[], **narrow).tokens == greedy[len(prompt) :], narrow


@pytest.mark.row(
    "prompt-logprobs",
    "prompt-logprobs-last-n",
    call="sample(include_prompt_logprobs=True, prompt_logprobs_last_n=)",
)
def test_prompt_logprobs_are_the_model_s_and_the_last_n_alone_if_asked(
    sampler: tinker.SamplingClient, base: Any
) -> None:
    tokens = some_tokens(3)
    expected = scores(base, tokens)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    prompt, params = tinker.ModelInput.from_ints(tokens), tinker.SamplingParams(max_tokens=1)
    whole = sampler.sample(prompt, 1, params, include_prompt_logprobs=True).result().prompt_logprobs
    assert whole is not None
    assert whole[0] is None
    np.testing.assert_allclose(np.array(whole[1:], np.float64), expected, atol=PARITY)
    last = (
        sampler.sample(prompt, 1, params, include_prompt_logprobs=True, prompt_logprobs_last_n=5)
        .result()
        .prompt_logprobs
    )
    assert last is not None
    assert last[:-5] == [None] * (len(tokens) - 5)
    assert last[-5:] == pytest.approx(whole[-5:], abs=1e-5)


@pytest.mark.row(
    "topk-prompt", "topk-sample", "asample", call="sample(topk_prompt_logprobs=, topk_sample_logprobs=)"
)
def test_the_likeliest_tokens_of_prompt_and_sample_are_the_model_s(
    sampler: tinker.SamplingClient, base: Any
) -> None:
    tokens, k = some_tokens(4, 10), 5
    response = sampler.sample(
        tinker.ModelInput.from_ints(tokens),
        2,
        tinker.SamplingParams(max_tokens=6, stop=[], seed=1),
        topk_prompt_logprobs=k,
        topk_sample_logprobs=k,
    ).result()
    rows = response.topk_prompt_logprobs
    assert rows is not None
    assert rows[0] is None
    _compare(rows[1:], scores(base, tokens)[:-1], k)
    assert len({sequence.sequence_id for sequence in response.sequences}) == 2
    for sequence in response.sequences:
        whole = scores(base, tokens + sequence.tokens)[len(tokens) - 1 : -1]
        _compare(sequence.topk_logprobs, whole, k)
        drawn = whole.gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(np.array(sequence.logprobs), drawn, atol=PARITY)


def _compare(rows: Any, expected: Tensor, k: int) -> None:
    best = expected.topk(k)
    for row, ids, values in zip(rows, best.indices, best.values, strict=True):
        assert len(row) == k
        np.testing.assert_allclose([value for _, value in row], values, atol=PARITY)
        # The order of two that are closer than the tolerance is nobody's.
        assert {token for token, _ in row[:1]} <= set(ids[:2].tolist())


@pytest.mark.row("samplers", "create-sampling-session", call="create_sampling_client, get_base_model")
def test_a_sampler_tells_its_base_model_and_its_weights(stack: Stack, trainer: tinker.TrainingClient) -> None:
    path = trainer.save_weights_for_sampler("told").result().path
    with tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as service:
        client = service.create_sampling_client(model_path=path).result()
        assert client.get_base_model() == MODEL
        raw = RawClient(stack)
        session_id = raw.new_session()
        body = {"session_id": session_id, "sampling_session_seq_id": 4, "model_path": path}
        sampler_id = raw.post("/create_sampling_session", **body)["sampling_session_id"]
        assert raw.http.get(f"/samplers/{sampler_id}").json() == {
            "sampler_id": sampler_id,
            "base_model": MODEL,
            "model_path": path,
        }
        assert raw.http.get("/samplers/unknown").status_code == 404


@pytest.mark.row("join-session", "stability-info", call="raw HTTP")
def test_clone_numbers_are_never_given_twice_and_stability_info_is_accepted(stack: Stack) -> None:
    raw = RawClient(stack)
    body = {"session_id": raw.new_session(), "sampling_session_seq_id": 0, "base_model": MODEL}
    sampler = raw.post("/create_sampling_session", **body)["sampling_session_id"]
    numbers = [
        raw.post("/join_sampling_session", sampling_session_id=sampler)["client_counter"] for _ in range(3)
    ]
    assert len(set(numbers)) == 3
    assert min(numbers) >= 1
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}, {"type": "encoded_text", "tokens": [7]}]}
    promise = raw.post(
        "/asample",
        sampling_session_id=sampler,
        seq_id=0,
        prompt=prompt,
        sampling_params={"max_tokens": 1},
        record_stability_info=True,
    )
    assert "protobuf" in raw.result(promise["request_id"])


@pytest.mark.row("split-text", call="compute_logprobs, TrainingClient.forward with several EncodedTextChunks")
def test_text_may_be_split_anywhere(sampler: tinker.SamplingClient, trainer: tinker.TrainingClient) -> None:
    tokens = some_tokens(6, 12)
    whole = tinker.ModelInput.from_ints(tokens)
    parts = [tokens[:1], [], tokens[1:7], tokens[7:]]
    split = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=part) for part in parts])
    one_way, other = (sampler.compute_logprobs(prompt).result()[1:] for prompt in (whole, split))
    assert one_way == pytest.approx(other, abs=1e-5)
    inputs: Any = {"target_tokens": tokens}
    data = [tinker.Datum(model_input=prompt, loss_fn_inputs=inputs) for prompt in (whole, split)]
    a, b = trainer.forward(data, "cross_entropy").result().loss_fn_outputs
    np.testing.assert_allclose(a["logprobs"].to_numpy(), b["logprobs"].to_numpy(), atol=1e-5)
