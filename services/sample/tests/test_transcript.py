"""What readers of a text see while its tokens arrive, with the tiny model's own tokenizer."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from tinsmith_common.settings import TINY_MODEL, locate_model
from tinsmith_sample.engines.base import Completion
from tinsmith_sample.services.inference.transcript import Span, Transcript
from tinsmith_sample.services.inference.vocabulary import UNKNOWN, Message, Vocabularies, Vocabulary

pytestmark = pytest.mark.slow  # imports transformers

MANY_BYTES = "é 日本語 😀👩‍🚀 naïve\n— done"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return asyncio.run(Vocabularies({TINY_MODEL: locate_model(TINY_MODEL)}).get(TINY_MODEL))


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    return list(asyncio.run(vocabulary.encode(text)))


def grown(tokens: Sequence[int]) -> Completion:
    return Completion(tuple(tokens), -np.arange(len(tokens), dtype=np.float32), "length")


def seen(spans: Sequence[Span]) -> str:
    return "".join(span.text for span in spans if not span.hidden)


def read(vocabulary: Vocabulary, tokens: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    """What is told after each token, and at the end."""
    transcript = Transcript(vocabulary, stops)
    return [seen(transcript.add(grown([token]))) for token in tokens] + [seen(transcript.finish())]


def test_characters_that_span_tokens_are_told_whole(vocabulary: Vocabulary) -> None:
    tokens = encode(vocabulary, MANY_BYTES)
    pieces = read(vocabulary, tokens)
    assert "".join(pieces) == MANY_BYTES
    assert all(UNKNOWN not in piece for piece in pieces)
    assert pieces[-1] == ""


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_read_as_the_whole_of_them_decodes(vocabulary: Vocabulary, seed: int) -> None:
    """Random tokens, many of them single bytes that are no characters, however they are cut into pieces."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 260 if seed % 2 else 2039, 80).tolist()
    pieces = read(vocabulary, tokens)
    assert "".join(pieces) == vocabulary.decode(tokens)
    transcript = Transcript(vocabulary, ())
    parts = [seen(transcript.add(grown(tokens[i : i + 7]))) for i in range(0, len(tokens), 7)]
    assert "".join(parts) + seen(transcript.finish()) == vocabulary.decode(tokens)


def test_bytes_that_are_no_characters_do_not_pile_up(vocabulary: Vocabulary) -> None:
    (continuation,) = {encode(vocabulary, "é")[-1]}
    pieces = read(vocabulary, [continuation] * 50)
    assert "".join(pieces) == UNKNOWN * 50
    assert pieces[-1].count(UNKNOWN) < 10


def test_an_unfinished_character_is_told_at_the_end(vocabulary: Vocabulary) -> None:
    tokens = encode(vocabulary, "a😀")[:-1]
    pieces = read(vocabulary, tokens)
    assert "".join(pieces[:-1]) == "a"
    assert pieces[-1] == vocabulary.decode(tokens)[1:] != ""


def test_special_tokens_are_counted_and_not_told(vocabulary: Vocabulary) -> None:
    tokens = [*encode(vocabulary, "Hello<|im_start|> there"), *encode(vocabulary, "<|im_end|>")]
    transcript = Transcript(vocabulary, ())
    spans = [*transcript.add(grown(tokens)), *transcript.finish()]
    assert seen(spans) == "Hello there"
    assert [vocabulary.decode([token.token for token in span.tokens]) for span in spans if span.hidden] == [
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert transcript.count == len(tokens)


@pytest.mark.parametrize(
    ("text", "stops", "told", "stop"),
    [
        ("one two three", ["two"], "one ", "two"),
        ("one two three", ["three", " two"], "one", " two"),
        ("one two three", ["wo th", "never"], "one t", "wo th"),
        ("one two three", ["never", "two four"], "one two three", None),
        ("日本語 is", ["本"], "日", "本"),
        ("😀 a", ["😀"], "", "😀"),
        ("aab", ["aaa", "ab"], "a", "ab"),
        ("end<|im_start|>more", ["<|im_start|>"], "end", "<|im_start|>"),
        ("end<|im_start|>more", ["d<|im_start|>m"], "en", "d<|im_start|>m"),
    ],
)
def test_nothing_from_the_first_stop_string_on_is_told(
    vocabulary: Vocabulary, text: str, stops: list[str], told: str, stop: str | None
) -> None:
    tokens = encode(vocabulary, text)
    pieces = read(vocabulary, tokens, stops)
    assert "".join(pieces) == told
    transcript = Transcript(vocabulary, stops)
    assert seen(transcript.add(grown(tokens))) + seen(transcript.finish()) == told
    assert transcript.stop == stop


def test_tokens_are_counted_up_to_the_end_of_the_stop_string(vocabulary: Vocabulary) -> None:
    tokens = encode(vocabulary, "one two three four")
    transcript = Transcript(vocabulary, [" thr"])
    spans = transcript.add(grown(tokens))
    ends = [count for count in range(len(tokens)) if " thr" in vocabulary.decode(tokens[:count])]
    assert transcript.count == ends[0]
    assert len([token for span in spans for token in span.tokens]) < ends[0]


def test_text_is_held_back_only_while_it_may_become_a_stop(vocabulary: Vocabulary) -> None:
    tokens = encode(vocabulary, "x 1 2 3")
    held = Transcript(vocabulary, [" 1 2 4"])
    pieces = [seen(held.add(grown([token]))) for token in tokens]
    assert pieces[0] == "x"
    assert "".join(pieces[:-1]) == "x"
    assert "".join(pieces) == "x 1 2 3"


@pytest.mark.parametrize("token", [5, 100, 1000])
def test_a_token_is_spelt_with_its_bytes(vocabulary: Vocabulary, token: int) -> None:
    text, raw = vocabulary.spell(token)
    assert raw is not None
    assert text in (raw.decode(errors="replace"), "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw))


def test_the_bytes_of_all_tokens_are_the_bytes_of_the_text(vocabulary: Vocabulary) -> None:
    spelt = [vocabulary.spell(token)[1] or b"" for token in encode(vocabulary, MANY_BYTES)]
    assert b"".join(spelt).decode() == MANY_BYTES


def test_a_conversation_is_rendered_to_where_the_answer_begins(vocabulary: Vocabulary) -> None:
    turns = [Message("system", "Be brief."), Message("user", "Hi")]
    text = vocabulary.decode(asyncio.run(vocabulary.render(turns)))
    assert (
        text
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    begun = [*turns, Message("assistant", "Hello")]
    assert vocabulary.decode(asyncio.run(vocabulary.render(begun, continue_last=True))) == text + "Hello"
