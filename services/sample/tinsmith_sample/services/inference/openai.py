"""From a request of the OpenAI protocol to the engine's work."""

from collections.abc import Sequence
from dataclasses import replace

from tinsmith_common.wire.openai import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    GenerationRequest,
)
from tinsmith_sample.engines.base import SampleSpec, Stops
from tinsmith_sample.services.inference.errors import WrongParameter
from tinsmith_sample.services.inference.generation import Work
from tinsmith_sample.services.inference.models import Models
from tinsmith_sample.services.inference.openai_answers import ChatAnswer, CompletionAnswer
from tinsmith_sample.services.inference.parameters import (
    OPENAI_MESSAGE_OPTIONS,
    OPENAI_OPTIONS,
    refuse_unsupported,
)
from tinsmith_sample.services.inference.vocabulary import Message, Vocabularies, Vocabulary

_DEFAULT_MAX_TOKENS = 16
"""Of `/completions`, as OpenAI has it; a chat goes on to the end of the context."""


class OpenAI:
    """Reads requests: what is to be sampled, and in which form it is to be answered.

    Its methods raise `InvalidInput` for what is wrong or not supported.
    """

    def __init__(self, models: Models, vocabularies: Vocabularies) -> None:
        self._models = models
        self._vocabularies = vocabularies

    async def completion(self, owner: str, body: CompletionRequest) -> CompletionAnswer:
        """`/completions`."""
        refuse_unsupported(body.model_extra, OPENAI_OPTIONS)
        max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        _check_combination(body, max_tokens)
        target = await self._models.resolve(owner, body.model)
        vocabulary = await self._vocabularies.get(target.base_model)
        prompts = [(item, await _tokens(item, vocabulary)) for item in _items(body.prompt)]
        scored = bool(body.echo) and body.logprobs is not None
        spec = replace(
            _spec(body, max(1, max_tokens), body.logprobs),
            prompt_logprobs=scored,
            topk_prompt_logprobs=body.logprobs or 0 if scored else 0,
        )
        specs = tuple(replace(spec, prompt=tokens) for _, tokens in prompts)
        echo = _texts(prompts, vocabulary) if body.echo else None
        work = Work(owner, "openai", target, vocabulary, specs, prompts_only=max_tokens == 0)
        return CompletionAnswer(work, body.logprobs, _include_usage(body), echo)

    async def chat(self, owner: str, body: ChatCompletionRequest) -> ChatAnswer:
        """`/chat/completions`."""
        refuse_unsupported(body.model_extra, OPENAI_OPTIONS)
        if body.top_logprobs is not None and not body.logprobs:
            raise WrongParameter("top_logprobs needs logprobs to be true", "top_logprobs")
        messages = [_message(message, f"messages.{index}.") for index, message in enumerate(body.messages)]
        max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if max_tokens == 0:
            raise WrongParameter("max_tokens must be at least 1", "max_tokens")
        target = await self._models.resolve(owner, body.model)
        vocabulary = await self._vocabularies.get(target.base_model)
        top = body.top_logprobs or 0 if body.logprobs else None
        prompt = await vocabulary.render(messages)
        work = Work(
            owner, "openai", target, vocabulary, (replace(_spec(body, max_tokens, top), prompt=prompt),)
        )
        return ChatAnswer(work, top, _include_usage(body))


def _spec(body: GenerationRequest, max_tokens: int | None, top_logprobs: int | None) -> SampleSpec:
    """Everything but the prompt."""
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SampleSpec(
        prompt=(),
        num_samples=body.n or 1,
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or -1,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stops=Stops(strings=stops),
        topk_sample_logprobs=top_logprobs or 0,
    )


def _items(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | Sequence[int]]:
    """The prompts: a list of numbers is one, other lists are many."""
    if not prompt:
        raise WrongParameter("prompt is empty", "prompt")
    if isinstance(prompt, str):
        return [prompt]
    tokens = [item for item in prompt if isinstance(item, int)]
    return [tokens] if tokens else [item for item in prompt if not isinstance(item, int)]


async def _tokens(item: str | Sequence[int], vocabulary: Vocabulary) -> tuple[int, ...]:
    return await vocabulary.encode(item) if isinstance(item, str) else tuple(item)


def _texts(
    prompts: Sequence[tuple[str | Sequence[int], tuple[int, ...]]], vocabulary: Vocabulary
) -> list[str]:
    return [item if isinstance(item, str) else vocabulary.decode(tokens) for item, tokens in prompts]


def _message(message: ChatMessage, where: str) -> Message:
    refuse_unsupported(message.model_extra, OPENAI_MESSAGE_OPTIONS, where)
    if message.role in ("tool", "function"):
        raise WrongParameter(
            f"messages of the role {message.role} are not supported here", f"{where}role", "unsupported_value"
        )
    # What OpenAI calls the developer's message is the system's in every chat template.
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str) or message.content is None:
        return Message(role, message.content or "")
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise WrongParameter(
                f"message parts of type {part.type} are not supported here; send text",
                f"{where}content",
                "unsupported_value",
            )
    return Message(role, "".join(part.text or "" for part in message.content))


def _check_combination(body: CompletionRequest, max_tokens: int) -> None:
    if max_tokens == 0 and (body.stream or not body.echo):
        raise WrongParameter("max_tokens 0 is for an echo without a stream", "max_tokens")
    if body.stream and body.echo and body.logprobs is not None:
        raise WrongParameter("an echo with logprobs cannot be streamed; leave one of them out", "echo")


def _include_usage(body: GenerationRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)
