"""The text of a completion while its tokens arrive."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinsmith_sample.engines.base import Completion, TopRow
from tinsmith_sample.services.inference.vocabulary import UNKNOWN, Vocabulary

_CHARACTER = 4
"""Bytes of the longest character, and so the most tokens that one may be spread over."""


@dataclass(frozen=True)
class Scored:
    """A token with its logprob and the likeliest alternatives to it."""

    token: int
    logprob: float | None
    top: TopRow | None = None


@dataclass(frozen=True)
class Span:
    """Whole characters and the tokens that spell them. The text of special tokens is `hidden` from readers."""

    tokens: tuple[Scored, ...]
    text: str
    hidden: bool = False


class Detokenizer:
    """Turns tokens into spans; the tokens of an unfinished character wait for the rest of it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._told: list[int] = []  # tokens of the span before: some tokenizers let them decide about spaces
        self._held: list[Scored] = []

    def add(self, token: Scored) -> list[Span]:
        """The spans that are complete with this token."""
        if self._vocabulary.is_special(token.token):
            spans = self.flush()
            self._told = [token.token]
            return [*spans, Span((token,), self._vocabulary.decode(self._told), hidden=True)]
        self._held.append(token)
        if not self._text(self._held).endswith(UNKNOWN):
            return self.flush()
        # Bytes that are no character would pile up, and be decoded again and again.
        first, rest = self._held[:-_CHARACTER], self._held[-_CHARACTER:]
        if first and self._text(first) + self._vocabulary.decode(_ids(rest)) == self._text(self._held):
            return [self._release(len(first))]
        return []

    def flush(self) -> list[Span]:
        """What is held, complete or not."""
        return [self._release(len(self._held))] if self._held else []

    def _release(self, count: int) -> Span:
        tokens, self._held = self._held[:count], self._held[count:]
        span = Span(tuple(tokens), self._text(tokens))
        self._told = _ids(tokens)
        return span

    def _text(self, tokens: Sequence[Scored]) -> str:
        before = self._vocabulary.decode(self._told)
        return self._vocabulary.decode([*self._told, *_ids(tokens)])[len(before) :]


class Transcript:
    """Spans of one completion as soon as they are certain: whole, and free of anything that may become a stop.

    Nothing from the first stop string on is ever told. `stop` is that string; `count` the tokens up to its end.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = stops
        self._pending: list[Span] = []
        self.stop: str | None = None
        self.count = 0

    def add(self, grown: Completion) -> list[Span]:
        """What is certain with these tokens. Tokens after a stop string are dropped."""
        told: list[Span] = []
        for index, token in enumerate(grown.tokens):
            if self.stop is not None:
                break
            self.count += 1
            top = grown.top[index] if grown.top else None
            told += self._settle(self._detokenizer.add(Scored(token, float(grown.logprobs[index]), top)))
        return told

    def finish(self) -> list[Span]:
        """The rest: no more tokens come."""
        if self.stop is not None:
            return []
        told = self._settle(self._detokenizer.flush())
        told += self._pending
        self._pending = []
        return told

    def _settle(self, spans: Sequence[Span]) -> list[Span]:
        told: list[Span] = []
        for span in spans:
            self._pending.append(span)
            text = "".join(item.text for item in self._pending)
            found = [(text.index(stop), stop) for stop in self._stops if stop in text]
            if found:
                end, self.stop = min(found)
                told += self._cut(end)
                self._pending = []
                break
            told += self._take(len(text) - _possible_stop(text, self._stops))
        return told

    def _take(self, length: int) -> list[Span]:
        """Remove and return the pending spans that lie within the first `length` characters."""
        told: list[Span] = []
        while self._pending and len(self._pending[0].text) <= length:
            told.append(self._pending.pop(0))
            length -= len(told[-1].text)
        return told

    def _cut(self, length: int) -> list[Span]:
        """The pending spans up to that many characters, the last of them shortened."""
        told: list[Span] = []
        for span in self._pending:
            if length <= 0:
                break
            told.append(replace(span, text=span.text[:length]))
            length -= len(span.text)
        return told


def spans_of(vocabulary: Vocabulary, tokens: Sequence[Scored]) -> list[Span]:
    """The spans of a whole text, special tokens included and visible."""
    detokenizer = Detokenizer(vocabulary)
    spans = [span for token in tokens for span in detokenizer.add(token)]
    return [replace(span, hidden=False) for span in [*spans, *detokenizer.flush()]]


def _possible_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which one of the stops begins."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest


def _ids(tokens: Sequence[Scored]) -> list[int]:
    return [item.token for item in tokens]
