"""What a sampling engine is: the types at its border and the protocol it satisfies."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinsmith_common.errors import EngineFailure

FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]
TopRow: TypeAlias = tuple[tuple[int, float], ...]
"""The likeliest tokens of one position as (token, logprob), best first."""


class EngineLost(EngineFailure):
    """The engine's process ended while it worked on this; the same work may be given to its successor."""


@dataclass(frozen=True)
class Stops:
    """What ends a completion besides its length. Given strings and tokens are stops in addition to EOS."""

    eos: bool = True
    strings: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()


NEVER = Stops(eos=False)
"""Run to `max_tokens`, through EOS."""


@dataclass(frozen=True)
class PromptTargets:
    """Tokens to score in the prompt: `ids[i]` in the place of prompt token `positions[i]`.

    Positions are ascending, at least 1, and may repeat.
    """

    positions: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class SampleSpec:
    """Completions asked for one prompt.

    `max_tokens` None: what the context leaves. It is cut to that in any case. `top_k` -1: off. `seed` None:
    every sample gets a random one. `prompt_logprobs_last_n` None: all positions. `prompt_alternatives`: tokens to
    draw for each prompt position after the first.
    """

    prompt: tuple[int, ...]
    num_samples: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    stops: Stops = field(default_factory=Stops)
    prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    targets: PromptTargets | None = None
    prompt_alternatives: int = 0


@dataclass(frozen=True)
class Completion:
    """One sampled continuation, with the stop token if one ended it.

    `logprobs`, float32 `[len(tokens)]`, are of the model: full softmax at temperature 1, whatever the sampling
    temperature, top-k and top-p.
    """

    tokens: tuple[int, ...]
    logprobs: FloatArray
    stop_reason: Literal["stop", "length"]
    top: tuple[TopRow, ...] = ()


@dataclass(frozen=True)
class PromptScores:
    """Logprobs of the prompt's own tokens, float32 `[len(prompt)]`; NaN where there is none (position 0)."""

    logprobs: FloatArray
    top: tuple[TopRow | None, ...] = ()


@dataclass(frozen=True)
class PromptAlternatives:
    """Tokens drawn with replacement at the request's temperature, int64 `[len(prompt) - 1, k]`, and their
    logprobs, float32 of the same shape, of the model as everywhere. Row i is about prompt token i + 1."""

    tokens: IntArray
    logprobs: FloatArray


@dataclass(frozen=True)
class SampleResult:
    """Answer to a `SampleSpec`; `cached_tokens` of the prompt were not computed anew.

    `targets`: a logprob for each of the spec's, in their order. `first_token_at`: when the first token of any
    completion was computed, in seconds since 1970; None where the engine does not tell.
    """

    completions: tuple[Completion, ...]
    prompt: PromptScores | None = None
    cached_tokens: int = 0
    targets: FloatArray | None = None
    alternatives: PromptAlternatives | None = None
    first_token_at: float | None = None


@dataclass(frozen=True)
class Piece:
    """What the sample `index` of the request `request` has grown by.

    `grown` holds new tokens alone; its `stop_reason` counts in the `last` piece only. Stop strings are the reader's
    business: the tokens may run on past one for as long as the reader does not leave. `cached_tokens` is as in
    `SampleResult`, for this sample.
    """

    request: int
    index: int
    grown: Completion
    last: bool
    cached_tokens: int = 0


@dataclass(frozen=True)
class Adapter:
    """Weights on top of the base model. A `key` names one content for ever; `folder` is in PEFT layout.

    A newer adapter of the same `line` makes the older ones unwanted. Requests of different `cache_namespace` never
    share what was computed of their prompts.
    """

    key: str
    folder: Path
    line: str | None = None
    cache_namespace: str | None = None


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter that the engine holds, or is loading: its `name` there, and how many requests use it now."""

    key: str
    name: str
    loaded: bool
    users: int


@dataclass(frozen=True)
class EngineLimits:
    """`vocab_size` and `context_length`, which bounds prompt plus completion, in tokens; `prompt_scores`: target and
    alternative tokens of one request; `running`: samples in one batch."""

    vocab_size: int
    context_length: int
    prompt_scores: int = 2**18
    running: int = 256


class SamplingEngine(Protocol):
    """One base model, ready to be sampled with or without adapters. Used from one event loop."""

    @property
    def capacity(self) -> int:
        """Samples that it works on at a time; more wait inside it."""
        ...

    async def start(self) -> None:
        """Bring the engine up; returns when it answers. Raises `EngineFailure`."""
        ...

    async def stop(self) -> None:
        """Take the engine down with all its processes. Work in flight fails with `EngineLost`."""
        ...

    async def healthy(self) -> bool:
        """Whether the engine answers now."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Figures for monitoring."""
        ...

    def residents(self) -> Sequence[ResidentAdapter]:
        """What the engine holds, the one that was used longest ago first."""
        ...

    async def sample(self, spec: SampleSpec, adapter: Adapter | None = None) -> SampleResult:
        """Sample. Cancelling the call takes its work out of the engine.

        Raises `InvalidInput` for what can never work, `EngineLost` and `EngineFailure` otherwise.
        """
        ...

    def stream(
        self, specs: Sequence[SampleSpec], adapter: Adapter | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Piece]]:
        """Sample token by token, the samples of all requests interleaved. Prompts are not scored.

        Entering raises what `sample` raises before its work begins, reading what it raises later. Leaving takes
        what is unfinished out of the engine.
        """
        ...
