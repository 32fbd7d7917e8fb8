"""What the service and its engine process say to each other, and the frames it travels in.

One socket pair, both ways: a frame is a 4-byte big-endian length and one msgpack message. Every order carries an
`id`; replies name the order they answer and may come in any order.
"""

import asyncio
import struct
from typing import Any

import msgspec

_LENGTH = struct.Struct(">I")


class Launch(msgspec.Struct, tag=True, frozen=True):
    """First frame to the process: how to build the engine.

    `device` is auto, cpu or cuda; `context_length` in tokens, None for the model's own.
    """

    model_path: str
    device: str
    context_length: int | None
    engine_args: dict[str, Any]


class Ready(msgspec.Struct, tag=True, frozen=True):
    """First frame from the process: the engine answers. Sizes in tokens; `running`: samples in one batch."""

    vocab_size: int
    context_length: int
    running: int


class Scoring(msgspec.Struct, frozen=True):
    """Tokens to score at prompt positions: `ids[i]` at `positions[i]` (ascending), and `draws` of each position's
    distribution at `temperature`."""

    positions: list[int]
    ids: list[int]
    draws: int
    temperature: float
    seed: int


class Generate(msgspec.Struct, tag=True, frozen=True):
    """One completion of one prompt. `prompt_logprobs_from` < 0 means: none wanted; `scoring` needs one.

    With `stream` the answer is any number of `Grown`, and `stop_strings` end it only if the engine notices them.
    """

    id: int
    tokens: list[int]
    sampling: dict[str, Any]
    stop_strings: list[str]
    adapter: str | None
    prompt_logprobs_from: int
    top_logprobs: int
    scoring: Scoring | None = None
    cache_namespace: str | None = None
    stream: bool = False


class LoadAdapter(msgspec.Struct, tag=True, frozen=True):
    """Load the PEFT folder `folder` under a name that was never used before."""

    id: int
    name: str
    folder: str


class UnloadAdapter(msgspec.Struct, tag=True, frozen=True):
    """Forget an adapter; gives up after `timeout_s`."""

    id: int
    name: str
    timeout_s: float


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Ask whether the engine's scheduler answers, and what it is busy with."""

    id: int


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Stop working on order `id`; nothing more is said about it."""

    id: int


class Generated(msgspec.Struct, tag=True, frozen=True):
    """Answer to `Generate`. Top lists hold (token, logprob) pairs per position, best first; `prompt_scores` the
    position's targets, then its draws. `first_token_at` is in seconds since 1970.

    `prompt_logprobs`, `prompt_top` and `prompt_scores` cover the last positions of the prompt, as many as they are
    long.
    """

    id: int
    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    cached_tokens: int
    top: list[list[tuple[int, float]]] | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top: list[list[tuple[int, float]] | None] | None = None
    prompt_scores: list[list[tuple[int, float]]] | None = None
    first_token_at: float | None = None


class Load(msgspec.Struct, tag=True, frozen=True):
    """Answer to `Ping`: requests that SGLang's scheduler works on, and that it keeps waiting."""

    id: int
    running: int
    waiting: int


class Grown(msgspec.Struct, tag=True, frozen=True):
    """Part of the answer to a streaming `Generate`: the tokens since the part before; the `last` says why it ended."""

    id: int
    part: Generated
    last: bool


class Done(msgspec.Struct, tag=True, frozen=True):
    """The order was carried out and has no result."""

    id: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The order failed, for the reason given."""

    id: int
    message: str


Work = Generate | LoadAdapter | UnloadAdapter | Ping
Order = Work | Abort
Reply = Generated | Grown | Load | Done | Failed

_encoder = msgspec.msgpack.Encoder()
launch_decoder = msgspec.msgpack.Decoder(Launch)
ready_decoder = msgspec.msgpack.Decoder(Ready)
order_decoder = msgspec.msgpack.Decoder(Order)
reply_decoder = msgspec.msgpack.Decoder(Reply)


def frame(message: msgspec.Struct) -> bytes:
    """The bytes of one message on the wire."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message's body. Raises `asyncio.IncompleteReadError` when the other side is gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)
