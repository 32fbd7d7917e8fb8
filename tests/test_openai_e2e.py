"""The OpenAI routes through the gateway with OpenAI's own client, against what the Tinker SDK samples."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tinker

from tests.data import some_tokens
from tests.inference import CHAT, MODEL, Reference, figure, make_reference, wait_until
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

# fp32, batches of other sizes: sums in another order.
TOLERANCE = 1e-4
DOCS = Path(__file__).parent.parent / "docs" / "inference.md"
WILD = 4.0
"""A temperature at which the tiny model samples single bytes of characters."""


@pytest.fixture(scope="module")
def reference(stack: Stack) -> Iterator[Reference]:
    reference = make_reference(stack)
    with reference.service:
        yield reference


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{stack.base_url}/oai/api/v1", api_key=stack.api_key, max_retries=0
    ) as client:
        yield client


@pytest.fixture(params=["base", "trained"])
def model(request: pytest.FixtureRequest, reference: Reference) -> str:
    return MODEL if request.param == "base" else reference.weights


def params(**values: Any) -> tinker.SamplingParams:
    defaults: dict[str, Any] = {"max_tokens": 24, "seed": 5}
    return tinker.SamplingParams(**(defaults | values))


def visible(reference: Reference, sequence: tinker.SampledSequence) -> list[tuple[int, float]]:
    """Tokens and logprobs that belong to the text."""
    special = reference.tokenizer.all_special_ids
    pairs = zip(sequence.tokens, sequence.logprobs or [], strict=True)
    return [(token, logprob) for token, logprob in pairs if token not in special]


@pytest.mark.row("openai-chat", call="OpenAI.chat.completions.create")
def test_a_chat_is_what_tinker_samples_for_the_same_tokens(
    client: openai.OpenAI, reference: Reference, model: str
) -> None:
    asked: dict[str, Any] = {"model": model, "messages": CHAT, "max_tokens": 24, "seed": 5, "n": 3}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    prompt = reference.chat_tokens(CHAT)
    expected = reference.sample(model, prompt, params(), count=3)
    assert [choice.message.content for choice in answer.choices] == [
        reference.text(sequence.tokens) for sequence in expected
    ]
    for choice, sequence in zip(answer.choices, expected, strict=True):
        assert choice.finish_reason == sequence.stop_reason
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
        pairs = visible(reference, sequence)
        assert [bytes(entry.bytes or []) for entry in entries] == [
            reference.tokenizer.decode([token]).encode() for token, _ in pairs
        ]
        assert [entry.logprob for entry in entries] == pytest.approx([p for _, p in pairs], abs=TOLERANCE)
        assert all(len(entry.top_logprobs) == 2 for entry in entries)
        assert all(entry.top_logprobs[0].logprob >= entry.logprob - TOLERANCE for entry in entries)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(len(sequence.tokens) for sequence in expected)


def test_trained_weights_answer_otherwise_than_the_base_model(
    client: openai.OpenAI, reference: Reference
) -> None:
    prompt = some_tokens(0)[:8]
    texts = {
        client.completions.create(model=name, prompt=prompt, temperature=0).choices[0].text
        for name in (MODEL, reference.weights)
    }
    assert len(texts) == 2


@pytest.mark.row("openai-stream", call="OpenAI.chat.completions.create(stream=True)")
@pytest.mark.parametrize("temperature", [1.0, WILD])
def test_the_pieces_of_a_chat_are_the_chat(
    client: openai.OpenAI, reference: Reference, model: str, temperature: float
) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": CHAT,
        "max_completion_tokens": 40,
        "seed": 9,
        "n": 2,
        "logprobs": True,
        "temperature": temperature,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    for choice in whole.choices:
        mine = [item for chunk in chunks for item in chunk.choices if item.index == choice.index]
        assert "".join(item.delta.content or "" for item in mine) == choice.message.content
        assert [item.finish_reason for item in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        assert choice.logprobs is not None
        logprobs = [entry for item in mine if item.logprobs for entry in item.logprobs.content or []]
        assert [entry.token for entry in logprobs] == [entry.token for entry in choice.logprobs.content or []]
        assert [entry.logprob for entry in logprobs] == pytest.approx(
            [entry.logprob for entry in choice.logprobs.content or []], abs=TOLERANCE
        )
    assert whole.usage is not None
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    streamed = chunks[-1].usage
    assert streamed is not None
    assert (streamed.prompt_tokens, streamed.completion_tokens, streamed.total_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
        whole.usage.total_tokens,
    )
    expected = reference.sample(
        model, reference.chat_tokens(CHAT), params(max_tokens=40, seed=9, temperature=temperature), count=2
    )
    assert [choice.message.content for choice in whole.choices] == [
        reference.text(sequence.tokens) for sequence in expected
    ]


@pytest.mark.row("openai-completions", call="OpenAI.completions.create")
def test_prompts_may_be_texts_or_tokens_one_or_many(client: openai.OpenAI, reference: Reference) -> None:
    texts = ["The cat sat on", "One day a"]
    tokens = [reference.tokenizer.encode(text) for text in texts]

    def complete(prompt: Any) -> list[str]:
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, seed=3, n=2)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    expected = [
        reference.text(sequence.tokens)
        for prompt in tokens
        for sequence in reference.sample(MODEL, prompt, params(max_tokens=12, seed=3), count=2)
    ]
    assert complete(texts) == complete(tokens) == expected
    assert complete(texts[0]) == complete(tokens[0]) == expected[:2]
    chunks = client.completions.create(model=MODEL, prompt=texts, max_tokens=12, seed=3, n=2, stream=True)
    streamed = [""] * 4
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected


def test_an_echo_scores_the_prompt_as_tinker_does(
    client: openai.OpenAI, reference: Reference, model: str
) -> None:
    text = "The cat sat on the mat."
    tokens = reference.tokenizer.encode(text)
    scores = reference.sampler(model).compute_logprobs(tinker.ModelInput.from_ints(tokens)).result()
    answer = client.completions.create(model=model, prompt=text, echo=True, max_tokens=0, logprobs=2)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == (text, "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    logprobs = choice.logprobs
    assert logprobs is not None
    values = logprobs.token_logprobs or []
    assert values[0] is None
    assert values[1:] == pytest.approx(scores[1:], abs=TOLERANCE)
    assert logprobs.tokens == [reference.tokenizer.decode([token]) for token in tokens]
    assert logprobs.text_offset == [len(reference.text(tokens[:end])) for end in range(len(tokens))]
    assert all(2 <= len(row) <= 3 for row in (logprobs.top_logprobs or [])[1:])


def test_an_echo_comes_before_the_completion(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "One day", "max_tokens": 6, "seed": 1}
    plain = client.completions.create(**asked, logprobs=0).choices[0]
    echoed = client.completions.create(**asked, logprobs=0, echo=True).choices[0]
    streamed = client.completions.create(**asked, echo=True, stream=True)
    assert echoed.text == "One day" + plain.text
    assert "".join(chunk.choices[0].text for chunk in streamed) == echoed.text
    assert plain.logprobs is not None
    assert echoed.logprobs is not None
    count = len(plain.logprobs.tokens or [])
    assert (echoed.logprobs.tokens or [])[-count:] == plain.logprobs.tokens
    assert (echoed.logprobs.token_logprobs or [])[-count:] == pytest.approx(
        plain.logprobs.token_logprobs, abs=TOLERANCE
    )
    assert (echoed.logprobs.text_offset or [])[-count:] == [
        offset + len("One day") for offset in plain.logprobs.text_offset or []
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The cat sat", "max_tokens": 40, "seed": 2}
    free = client.completions.create(**asked).choices[0].text
    stop = free[9:12]  # wherever its tokens begin
    asked["stop"] = ["never said", stop]
    if stream:
        choices = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    else:
        choices = client.completions.create(**asked).choices
    assert "".join(choice.text for choice in choices) == free[: free.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_a_repeated_prompt_is_counted_as_cached(client: openai.OpenAI) -> None:
    prompt = some_tokens(4711, 64)
    client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
    usage = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens == 64


def test_models_are_the_served_ones_and_the_caller_s_weights(
    client: openai.OpenAI, reference: Reference
) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert reference.weights in names
    assert [client.models.retrieve(name).id for name in names[:2]] == names[:2]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


REFUSED = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format", "response_format"),
    ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty"),
    ({"temperature": -1}, "temperature", "temperature"),
    ({"top_logprobs": 2}, "top_logprobs", "top_logprobs"),
    ({"messages": []}, "messages", "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role", "tool"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
        "image_url",
    ),
    ({"messages": [{"role": "user", "content": "word " * 5000}]}, None, "context"),
    ({"stop": ""}, None, "stop string"),
    ({"stop": ["x"] * 40}, None, "stop strings"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("options", "param", "said"), REFUSED)
def test_what_cannot_be_done_is_a_400_that_names_it(
    client: openai.OpenAI, options: dict[str, Any], param: str | None, said: str, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 4, "stream": stream}
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        client.chat.completions.create(**asked | options)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize("prompt", [[10**6], [[5], [-1]], [], "", ["", "x"], [5, "x"]])
@pytest.mark.parametrize("echo", [False, True])
def test_a_prompt_that_is_none_is_a_400(client: openai.OpenAI, prompt: Any, echo: bool) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt=prompt, echo=echo, max_tokens=1)


def test_harmless_options_are_accepted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        max_tokens=4,
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        reasoning_effort="low",
        presence_penalty=0,
        response_format={"type": "text"},
        tool_choice="none",
        extra_body={"made_up": 1, "repetition_penalty": 1.0},
    )
    assert answer.choices[0].message.role == "assistant"


def test_models_that_cannot_be_sampled_are_refused(
    client: openai.OpenAI, reference: Reference, trainer: tinker.TrainingClient
) -> None:
    def ask(model: str) -> None:
        client.completions.create(model=model, prompt="x", max_tokens=1)

    with pytest.raises(openai.NotFoundError) as unknown:
        ask("gpt-4o")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="no checkpoint"):
        ask(f"{reference.weights}-gone")
    training = trainer.save_state("one").result().path
    with pytest.raises(openai.BadRequestError, match="save_weights_for_sampler"):
        ask(training)


def test_a_wrong_key_and_an_unknown_route_fail_in_openais_shape(stack: Stack, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as unauthorized:
        client.with_options(api_key="tml-wrong").models.list()
    assert unauthorized.value.code == "invalid_api_key"
    by_header = httpx.get(f"{client.base_url}models", headers={"X-API-Key": stack.api_key})
    assert by_header.status_code == 200
    with pytest.raises(openai.NotFoundError, match="/embeddings"):
        client.embeddings.create(model=MODEL, input="x")


async def test_the_async_client_works_and_many_streams_go_on_at_once(stack: Stack) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{stack.base_url}/oai/api/v1", api_key=stack.api_key, max_retries=0
    ) as client:

        async def text(index: int) -> tuple[str, str]:
            asked: dict[str, Any] = {"model": MODEL, "prompt": some_tokens(index, 9), "seed": index}
            stream = await client.completions.create(**asked, stream=True)
            pieces = [chunk.choices[0].text async for chunk in stream]
            return "".join(pieces), (await client.completions.create(**asked)).choices[0].text

        for streamed, whole in await asyncio.gather(*map(text, range(12))):
            assert streamed == whole


def test_events_arrive_while_tokens_are_made_and_a_client_that_leaves_ends_the_work(
    stack: Stack, client: openai.OpenAI
) -> None:
    """The first events must have come before the last token was made: leaving upon them keeps it from being made."""
    before = figure(stack, "tinsmith_inference_tokens_total")
    asked: dict[str, Any] = {"model": MODEL, "prompt": [5, 6, 7], "temperature": WILD, "n": 2}
    with client.completions.create(**asked, max_tokens=3000, stream=True) as stream:
        first = [next(stream) for _ in range(3)]
    assert all(chunk.choices[0].finish_reason is None for chunk in first)
    wait_until(lambda: figure(stack, "tinsmith_inference_open") == 0)
    wait_until(lambda: figure(stack, "tinsmith_engine_requests") == 0)
    made = figure(stack, "tinsmith_inference_tokens_total") - before
    assert 0 < made < 2 * 3000
    assert figure(stack, "tinsmith_inference_requests_total") > 0


def test_leaving_a_whole_answer_ends_its_work_too(stack: Stack, client: openai.OpenAI) -> None:
    cancelled = (
        'tinsmith_inference_requests_total{model="tinsmith/tiny-qwen3",outcome="cancelled",protocol="openai"}'
    )
    before = figure(stack, cancelled)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(
            model=MODEL, prompt=[5, 6, 7], temperature=WILD, max_tokens=4000, n=4
        )
    wait_until(lambda: figure(stack, cancelled) == before + 1)
    wait_until(lambda: figure(stack, "tinsmith_engine_requests") == 0)


def test_the_snippets_of_the_docs_run(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", stack.base_url)
    monkeypatch.setenv("TINKER_API_KEY", stack.api_key)
    snippets = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
    assert len(snippets) == 4
    namespace: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, namespace)
        assert capsys.readouterr().out.strip()


def test_text_that_spans_tokens_comes_in_whole_characters(
    client: openai.OpenAI, reference: Reference
) -> None:
    """Every character below is several tokens to the tiny model; an echoed token list is spelt by the same code."""
    text = "é 日本 😀!"
    tokens = reference.tokenizer.encode(text)
    assert len(tokens) > len(text)
    answer = client.completions.create(model=MODEL, prompt=tokens, echo=True, max_tokens=0, logprobs=0)
    assert answer.choices[0].text == text
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    raw = b"".join(
        bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
        if token.startswith("bytes:")
        else token.encode()
        for token in logprobs.tokens or []
    )
    assert raw.decode() == text
    assert np.all(np.diff(logprobs.text_offset or []) >= 0)
