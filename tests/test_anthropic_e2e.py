"""The Anthropic routes through the gateway with Anthropic's own client, against what the Tinker SDK samples."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
import tinker

from tests.inference import CHAT, MODEL, Reference, figure, make_reference, wait_until
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def reference(stack: Stack) -> Iterator[Reference]:
    reference = make_reference(stack)
    with reference.service:
        yield reference


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=f"{stack.base_url}/anthropic/api", api_key=stack.api_key, max_retries=0
    ) as client:
        yield client


def ask(model: str = MODEL, temperature: float = 0.0, **options: Any) -> dict[str, Any]:
    """The protocol knows no seed, so what is compared is greedy; new clients know no temperature."""
    asked = {"model": model, "messages": CHAT, "max_tokens": 24, "extra_body": {"temperature": temperature}}
    return asked | options


def text(message: anthropic.types.Message) -> str:
    assert [block.type for block in message.content] == ["text"]
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.row("anthropic-messages", call="Anthropic.messages.create")
@pytest.mark.parametrize("trained", [False, True])
def test_a_message_is_what_tinker_samples_for_the_same_tokens(
    client: anthropic.Anthropic, reference: Reference, trained: bool
) -> None:
    model = reference.weights if trained else MODEL
    system = "Be brief."
    prompt = reference.chat_tokens([{"role": "system", "content": system}, *CHAT])
    params = tinker.SamplingParams(max_tokens=24, temperature=0)
    (expected,) = reference.sample(model, prompt, params)
    asked = ask(model, system=[{"type": "text", "text": system}])
    message = client.messages.create(**asked)
    assert text(message) == reference.text(expected.tokens)
    assert message.model == model
    assert message.stop_reason == ("end_turn" if expected.stop_reason == "stop" else "max_tokens")
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == len(prompt)
    assert usage.output_tokens == len(expected.tokens)
    counted = client.messages.count_tokens(model=model, system=system, messages=asked["messages"])
    assert counted.input_tokens == len(prompt)


@pytest.mark.row("anthropic-messages", call="Anthropic.messages.stream")
def test_a_stream_is_the_message_event_by_event(client: anthropic.Anthropic, stack: Stack) -> None:
    asked = ask(messages=[{"role": "user", "content": "Tell me a story."}])
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == text(streamed) == text(whole)
    assert (streamed.stop_reason, streamed.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    names = [event for event, _ in raw_events(stack, asked)]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def raw_events(stack: Stack, asked: dict[str, Any]) -> list[tuple[str, str]]:
    url = f"{stack.base_url}/anthropic/api/v1/messages"
    answer = httpx.post(
        url,
        json=asked | asked["extra_body"] | {"stream": True},
        headers={"x-api-key": stack.api_key},
        timeout=60,
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(first.removeprefix("event: "), second.removeprefix("data: ")) for first, second in lines]


def test_a_stop_sequence_is_named_and_cut_off(client: anthropic.Anthropic) -> None:
    asked = ask(messages=[{"role": "user", "content": "Tell me a story."}])
    free = text(client.messages.create(**asked))
    stop = free[6:10]
    message = client.messages.create(**asked, stop_sequences=["never said", stop])
    assert text(message) == free[: free.index(stop)]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)


def test_a_last_message_of_the_assistant_is_continued(
    client: anthropic.Anthropic, reference: Reference
) -> None:
    begun = "The answer"
    prompt = reference.chat_tokens(CHAT) + reference.tokenizer.encode(begun)
    params = tinker.SamplingParams(max_tokens=24, temperature=0)
    (expected,) = reference.sample(MODEL, prompt, params)
    message = client.messages.create(**ask(messages=[*CHAT, {"role": "assistant", "content": begun}]))
    assert text(message) == reference.text(expected.tokens)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "context"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_a_400_that_names_it(
    client: anthropic.Anthropic, options: dict[str, Any], said: str, stream: bool
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said) as refused:
        client.messages.create(**ask(**options), stream=stream)
    body: Any = refused.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")


def test_a_wrong_key_and_an_unknown_model_fail_in_anthropics_shape(
    stack: Stack, client: anthropic.Anthropic
) -> None:
    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        client.with_options(api_key="tml-wrong").messages.create(**ask())
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(**ask("claude-opus-4-5"))
    with pytest.raises(anthropic.NotFoundError, match="/messages/batches"):
        client.messages.batches.list()
    with anthropic.Anthropic(base_url=client.base_url, auth_token=stack.api_key, max_retries=0) as bearer:
        assert next(iter(bearer.models.list())).id == MODEL


async def test_the_async_client_works_and_models_are_listed(stack: Stack, reference: Reference) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=f"{stack.base_url}/anthropic/api", api_key=stack.api_key, max_retries=0
    ) as client:
        names = [model.id async for model in client.models.list()]
        assert names[0] == MODEL
        assert reference.weights in names
        assert (await client.models.retrieve(reference.weights)).id == reference.weights
        asked = ask(reference.weights)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_text()
        assert streamed == text(await client.messages.create(**asked))


def test_a_client_that_leaves_a_stream_ends_the_work(stack: Stack, client: anthropic.Anthropic) -> None:
    before = figure(stack, "tinsmith_inference_tokens_total")
    asked = ask(messages=[{"role": "user", "content": "x"}], max_tokens=3500, temperature=4.0)
    with client.messages.create(**asked, stream=True) as stream:
        assert next(stream).type == "message_start"
    wait_until(lambda: figure(stack, "tinsmith_inference_open") == 0)
    wait_until(lambda: figure(stack, "tinsmith_engine_requests") == 0)
    assert 0 < figure(stack, "tinsmith_inference_tokens_total") - before < 3500
