"""From sampled choices to the answers and events of the OpenAI protocol."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeAlias

from tinsmith_sample.engines.base import PromptScores
from tinsmith_sample.services.inference.generation import Generation, Increment, Stream, Usage, Work
from tinsmith_sample.services.inference.transcript import Scored, Span, spans_of
from tinsmith_sample.services.inference.vocabulary import Vocabulary

Json: TypeAlias = dict[str, Any]

_LOWEST_LOGPROB = -9999.0
"""Stands for a probability of 0, as OpenAI has it: JSON knows no infinity."""


class Answer(ABC):
    """One answer: `work` is what must be done for it. `top` None: no logprobs are wanted."""

    def __init__(self, work: Work, top: int | None, include_usage: bool) -> None:
        self.work = work
        self._top = top
        self._include_usage = include_usage
        self._id = uuid.uuid4().hex
        self._created = int(time.time())

    @abstractmethod
    def whole(self, generation: Generation) -> Json:
        """The answer in one piece."""

    @abstractmethod
    def events(self, stream: Stream) -> AsyncGenerator[Json]:
        """The answer as it is made."""

    def _body(self, prefix: str, kind: str, choices: Sequence[Json]) -> Json:
        return {
            "id": f"{prefix}-{self._id}",
            "object": kind,
            "created": self._created,
            "model": self.work.target.name,
            "choices": choices,
        }


class CompletionAnswer(Answer):
    """Of `/completions`. `echo`: the text of each prompt, to be told before its completions."""

    def __init__(self, work: Work, top: int | None, include_usage: bool, echo: Sequence[str] | None) -> None:
        super().__init__(work, top, include_usage)
        self._echo = echo

    def whole(self, generation: Generation) -> Json:
        """A text completion."""
        choices = [self._choice(item, generation.prompts) for item in generation.choices]
        return self._chunk(choices, generation.usage)

    async def events(self, stream: Stream) -> AsyncGenerator[Json]:
        """Text completions, each with what is new of one choice."""
        written = [0] * self.work.choices
        if self._echo is not None:
            for choice in range(self.work.choices):
                text = self._echo[self._prompt_of(choice)]
                written[choice] = len(text)
                yield self._chunk([_text_choice(choice, text, None, None)])
        async for item in stream.increments:
            if item.finish is not None or _visible(item.spans):
                logprobs = self._logprobs(item.spans, written[item.choice])
                written[item.choice] += len(item.text)
                yield self._chunk([_text_choice(item.choice, item.text, logprobs, item.finish)])
        if self._include_usage:
            yield self._chunk([], stream.usage)

    def _choice(self, item: Increment, prompts: Sequence[PromptScores | None]) -> Json:
        if self._echo is None:
            return _text_choice(item.choice, item.text, self._logprobs(item.spans, 0), item.finish)
        prompt = self._prompt_of(item.choice)
        scores = prompts[prompt]
        repeated = [] if scores is None else self._prompt_spans(self.work.specs[prompt].prompt, scores)
        logprobs = self._logprobs([*repeated, *item.spans], 0)
        return _text_choice(item.choice, self._echo[prompt] + item.text, logprobs, item.finish)

    def _prompt_of(self, choice: int) -> int:
        return choice // self.work.specs[0].num_samples

    def _prompt_spans(self, tokens: Sequence[int], scores: PromptScores) -> list[Span]:
        rows = scores.top or [None] * len(tokens)
        values = [None, *(float(value) for value in scores.logprobs[1:])]  # the first has no logprob
        return spans_of(
            self.work.vocabulary,
            [Scored(token, value, row) for token, value, row in zip(tokens, values, rows, strict=True)],
        )

    def _logprobs(self, spans: Sequence[Span], offset: int) -> Json | None:
        if self._top is None:
            return None
        vocabulary = self.work.vocabulary
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for span in spans:
            for item in () if span.hidden else span.tokens:
                spelling = vocabulary.spell(item.token)[0]
                tokens.append(spelling)
                values.append(None if item.logprob is None else _finite(item.logprob))
                offsets.append(offset)
                tops.append(_top_table(vocabulary, item, spelling))
            offset += 0 if span.hidden else len(span.text)
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops if self._top else None,
            "text_offset": offsets,
        }

    def _chunk(self, choices: Sequence[Json], usage: Usage | None = None) -> Json:
        body = self._body("cmpl", "text_completion", choices)
        return body | {"usage": None if usage is None else _usage(usage)}


class ChatAnswer(Answer):
    """Of `/chat/completions`."""

    def whole(self, generation: Generation) -> Json:
        """A chat completion."""
        choices = [
            {
                "index": item.choice,
                "message": {"role": "assistant", "content": item.text, "refusal": None},
                "logprobs": self._logprobs(item.spans),
                "finish_reason": item.finish,
            }
            for item in generation.choices
        ]
        return self._body("chatcmpl", "chat.completion", choices) | {"usage": _usage(generation.usage)}

    async def events(self, stream: Stream) -> AsyncGenerator[Json]:
        """Chunks: the role of every choice, then what is new, then how it ended."""
        for choice in range(self.work.choices):
            yield self._chunk(choice, {"role": "assistant", "content": "", "refusal": None})
        async for item in stream.increments:
            if _visible(item.spans):
                yield self._chunk(item.choice, {"content": item.text}, self._logprobs(item.spans))
            if item.finish is not None:
                yield self._chunk(item.choice, {}, finish=item.finish)
        if self._include_usage:
            yield self._body("chatcmpl", "chat.completion.chunk", []) | {"usage": _usage(stream.usage)}

    def _chunk(
        self, choice: int, delta: Json, logprobs: Json | None = None, finish: str | None = None
    ) -> Json:
        body = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._body("chatcmpl", "chat.completion.chunk", [body]) | {"usage": None}

    def _logprobs(self, spans: Sequence[Span]) -> Json | None:
        if self._top is None:
            return None
        vocabulary = self.work.vocabulary
        return {
            "content": [
                _entry(vocabulary, item.token, item.logprob or 0.0)
                | {"top_logprobs": [_entry(vocabulary, *pair) for pair in item.top or ()]}
                for item in _visible(spans)
            ],
            "refusal": None,
        }


def _text_choice(index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _visible(spans: Sequence[Span]) -> list[Scored]:
    return [item for span in spans if not span.hidden for item in span.tokens]


def _top_table(vocabulary: Vocabulary, item: Scored, spelling: str) -> dict[str, float] | None:
    """The likeliest tokens, and the token itself if it is not one of them."""
    if item.top is None or item.logprob is None:
        return None
    table = {vocabulary.spell(token)[0]: _finite(value) for token, value in reversed(item.top)}
    return dict(reversed(table.items())) | {spelling: _finite(item.logprob)}


def _entry(vocabulary: Vocabulary, token: int, logprob: float) -> Json:
    spelling, raw = vocabulary.spell(token)
    return {
        "token": spelling,
        "logprob": _finite(logprob),
        "bytes": None if raw is None else list(raw),
    }


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
