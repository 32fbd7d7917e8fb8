"""The Anthropic protocol: from its requests to the engine's work, and from what is sampled to its answers."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeAlias

from tinsmith_common.wire.anthropic import ContentBlock, CountTokensRequest, MessagesRequest
from tinsmith_sample.engines.base import SampleSpec, Stops
from tinsmith_sample.services.inference.errors import WrongParameter
from tinsmith_sample.services.inference.generation import Generation, Increment, Stream, Usage, Work
from tinsmith_sample.services.inference.models import Models
from tinsmith_sample.services.inference.parameters import ANTHROPIC_OPTIONS, refuse_unsupported
from tinsmith_sample.services.inference.vocabulary import Message, Vocabularies, Vocabulary

Json: TypeAlias = dict[str, Any]


class Anthropic:
    """Reads requests. Its methods raise `InvalidInput` for what is wrong or not supported."""

    def __init__(self, models: Models, vocabularies: Vocabularies) -> None:
        self._models = models
        self._vocabularies = vocabularies

    async def message(self, owner: str, body: MessagesRequest) -> "MessageAnswer":
        """`/messages`."""
        _check_options(body)
        target = await self._models.resolve(owner, body.model)
        vocabulary = await self._vocabularies.get(target.base_model)
        spec = SampleSpec(
            prompt=await _render(body, vocabulary),
            max_tokens=body.max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k or -1,
            top_p=1.0 if body.top_p is None else body.top_p,
            stops=Stops(strings=tuple(body.stop_sequences or ())),
        )
        return MessageAnswer(Work(owner, "anthropic", target, vocabulary, (spec,)))

    async def count_tokens(self, owner: str, body: CountTokensRequest) -> int:
        """`/messages/count_tokens`."""
        _check_options(body)
        target = await self._models.resolve(owner, body.model)
        return len(await _render(body, await self._vocabularies.get(target.base_model)))


class MessageAnswer:
    """One message in answer: `work` is what must be done for it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._id = f"msg_{uuid.uuid4().hex}"

    def whole(self, generation: Generation) -> Json:
        """The message in one piece."""
        choice = generation.choices[0]
        content = [{"type": "text", "text": choice.text}]
        return self._message(content, generation.usage) | _ending(choice)

    async def events(self, stream: Stream) -> AsyncGenerator[Json]:
        """One text block. It begins with the first token, because the start of a message tells what was cached."""
        begun = False
        async for item in stream.increments:
            if not begun:
                begun = True
                yield {"type": "message_start", "message": self._message([], stream.usage)}
                block = {"type": "text", "text": ""}
                yield {"type": "content_block_start", "index": 0, "content_block": block}
                yield {"type": "ping"}
            if item.text:
                delta = {"type": "text_delta", "text": item.text}
                yield {"type": "content_block_delta", "index": 0, "delta": delta}
            if item.finish is not None:
                yield {"type": "content_block_stop", "index": 0}
                yield {"type": "message_delta", "delta": _ending(item), "usage": _usage(stream.usage)}
                yield {"type": "message_stop"}

    def _message(self, content: Sequence[Json], usage: Usage) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.work.target.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }


def _check_options(body: CountTokensRequest) -> None:
    extra = body.model_extra or {}
    refuse_unsupported(extra, ANTHROPIC_OPTIONS)
    if isinstance(output := extra.get("output_config"), dict):
        refuse_unsupported(output, {"format": None}, "output_config.")  # its effort may be ignored


async def _render(body: CountTokensRequest, vocabulary: Vocabulary) -> tuple[int, ...]:
    messages = [
        Message(message.role, _text(message.content, f"messages.{index}.content"))
        for index, message in enumerate(body.messages)
    ]
    if system := _text(body.system or "", "system"):
        messages.insert(0, Message("system", system))
    return await vocabulary.render(messages, continue_last=messages[-1].role == "assistant")


def _text(content: str | list[ContentBlock], where: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise WrongParameter(
                f"{where}: blocks of type {block.type} are not supported here; send text", where
            )
    return "".join(block.text or "" for block in content)


def _ending(item: Increment) -> Json:
    reason = "max_tokens" if item.finish == "length" else "stop_sequence" if item.stop else "end_turn"
    return {"stop_reason": reason, "stop_sequence": item.stop}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
