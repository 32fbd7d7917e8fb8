"""A model's tokenizer: from text and conversations to tokens, and back."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinsmith_common.errors import EngineFailure, InvalidInput
from tinsmith_common.observability import get_logger

_log = get_logger(__name__)

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands in a text for bytes that are no character, or not yet."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


class Vocabulary:
    """One base model's tokenizer, as its Hugging Face folder has it."""

    def __init__(self, tokenizer: Any, byte_letters: Mapping[int, str]) -> None:
        """`byte_letters`: how byte-level tokenizers write each byte."""
        self._tokenizer = tokenizer
        self._bytes = {letter: byte for byte, letter in byte_letters.items()}
        self._special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}

    async def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text, with those that the tokenizer puts around one."""
        return tuple(await asyncio.to_thread(self._tokenizer.encode, text))

    async def render(self, messages: Sequence[Message], *, continue_last: bool = False) -> tuple[int, ...]:
        """Tokens of a conversation in the model's own template, up to where its next turn begins.

        With `continue_last` the last message is the beginning of that turn. Raises `InvalidInput` when the
        model has no template, or its template refuses the conversation.
        """
        return await asyncio.to_thread(self._render, messages, continue_last)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return self._tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def is_special(self, token: int) -> bool:
        """Whether a token marks structure and is no part of a text."""
        return token in self._special

    def spell(self, token: int) -> tuple[str, bytes | None]:
        """How one token reads, and its bytes where they are known."""
        text = self.decode([token])
        if UNKNOWN not in text:
            return text, text.encode()
        raw = self._raw_bytes(token)
        if raw is None:
            return text, None
        try:
            return raw.decode(), raw
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw

    def _raw_bytes(self, token: int) -> bytes | None:
        written: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if written is None:
            return None
        if len(written) == 6 and written.startswith("<0x"):
            return bytes([int(written[3:5], 16)])
        if all(letter in self._bytes for letter in written):
            return bytes(self._bytes[letter] for letter in written)
        return None

    def _render(self, messages: Sequence[Message], continue_last: bool) -> tuple[int, ...]:
        import jinja2

        if not self._tokenizer.chat_template:
            raise InvalidInput("this model has no chat template; send text or tokens to /completions")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return tuple(
                self._tokenizer.apply_chat_template(
                    turns,
                    add_generation_prompt=not continue_last,
                    continue_final_message=continue_last,
                    return_dict=False,
                )
            )
        except (jinja2.TemplateError, ValueError) as error:
            raise InvalidInput(f"the model's chat template refuses these messages: {error}") from error


class Vocabularies:
    """Vocabularies by base model, each loaded when it is first asked for.

    The first of them brings `transformers` in, which takes seconds and 150 MB; a service that answers the Tinker
    API alone never pays for it.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        self._loading: dict[str, asyncio.Task[Vocabulary]] = {}

    async def get(self, base_model: str) -> Vocabulary:
        """The vocabulary of a served model. Raises `EngineFailure` when it has none that can be read."""
        task = self._loading.get(base_model)
        if task is None or (task.done() and task.exception() is not None):
            task = asyncio.create_task(asyncio.to_thread(_load, base_model, self._paths[base_model]))
            self._loading[base_model] = task
        # Shielded: one caller who leaves must not end the load that others wait for.
        return await asyncio.shield(task)


def _load(base_model: str, path: str) -> Vocabulary:
    from transformers import AutoTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    try:
        return Vocabulary(AutoTokenizer.from_pretrained(path), bytes_to_unicode())
    except (OSError, ValueError) as error:
        _log.exception("a tokenizer could not be loaded", model=base_model)
        raise EngineFailure(f"the tokenizer of {base_model} could not be loaded: {error}") from error
