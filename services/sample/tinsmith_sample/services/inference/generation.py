"""Carries out what either protocol asks for, whole or as it is made, and counts it."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from tinsmith_common import catalog
from tinsmith_common.catalog import UsageKind, UsageLedger
from tinsmith_common.errors import Leaving, Overloaded, TinsmithError
from tinsmith_common.observability import received_at
from tinsmith_sample.engines.base import (
    Completion,
    Piece,
    PromptScores,
    SampleResult,
    SampleSpec,
)
from tinsmith_sample.engines.checks import MAX_SAMPLES
from tinsmith_sample.metrics import InferenceMetrics
from tinsmith_sample.services.admission import Engines
from tinsmith_sample.services.inference.errors import WrongParameter
from tinsmith_sample.services.inference.models import Target
from tinsmith_sample.services.inference.transcript import Span, Transcript
from tinsmith_sample.services.inference.vocabulary import Vocabulary
from tinsmith_sample.services.sampling import sample_on

Protocol: TypeAlias = Literal["openai", "anthropic"]
Finish: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True)
class Work:
    """Requests of one caller to one model; all of them have the same number of samples.

    `prompts_only`: the engine cannot but sample a token; it is dropped and not counted.
    """

    owner: str
    protocol: Protocol
    target: Target
    vocabulary: Vocabulary
    specs: tuple[SampleSpec, ...]
    prompts_only: bool = False

    @property
    def choices(self) -> int:
        """Samples in all, numbered prompt by prompt."""
        return sum(spec.num_samples for spec in self.specs)


@dataclass
class Usage:
    """Tokens, and how many of the prompts' did not have to be computed; complete when the work is done."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Increment:
    """What a choice has grown by. `finish` tells why it has ended, `stop` at which of the stop strings."""

    choice: int
    spans: Sequence[Span]
    finish: Finish | None = None
    stop: str | None = None

    @property
    def text(self) -> str:
        """What a reader sees."""
        return "".join(span.text for span in self.spans if not span.hidden)


@dataclass(frozen=True)
class Generation:
    """All choices whole, and the scores of each prompt where they were asked for."""

    choices: Sequence[Increment]
    prompts: Sequence[PromptScores | None]
    usage: Usage


@dataclass(frozen=True)
class Stream:
    """Choices as they grow. `usage` grows along."""

    increments: AsyncIterator[Increment]
    usage: Usage


@dataclass
class _Tally:
    """One piece of work in progress."""

    work: Work
    usage: Usage
    outcome: str = "cancelled"
    start: float = field(default_factory=time.perf_counter)
    arrived_at: datetime = field(default_factory=received_at)
    first_token_at: float | None = None


class Inference:
    """Runs work on the engine of its base model, within the limit of what may be open at a time."""

    def __init__(
        self,
        engines: Engines,
        ledger: UsageLedger,
        metrics: InferenceMetrics,
        max_open: int,
    ) -> None:
        self._engines = engines
        self._ledger = ledger
        self._metrics = metrics
        self._max_open = max_open
        self._open = 0
        self._draining = False
        self._idle = asyncio.Event()

    async def drain(self, grace_s: float) -> None:
        """Take no more, and wait up to `grace_s` for what is open."""
        self._draining = True
        if self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._idle.wait()

    async def complete(self, work: Work) -> Generation:
        """All of it at once. Cancelling the call aborts it. Raises `Overloaded`, and what the engine raises."""
        async with self._tally(work) as tally:
            results = await self._sample_all(work)
            firsts = [result.first_token_at for result in results if result.first_token_at is not None]
            tally.first_token_at = min(firsts, default=None)
            tally.usage.cached_tokens = sum(result.cached_tokens for result in results)
            choices: list[Increment] = []
            for spec, result in zip(work.specs, results, strict=True):
                for completion in result.completions:
                    choices.append(_choice(len(choices), completion, spec, tally))
            tally.outcome = "done"
            return Generation(choices, [result.prompt for result in results], tally.usage)

    @asynccontextmanager
    async def stream(self, work: Work) -> AsyncGenerator[Stream]:
        """The same, token by token. Leaving aborts what is unfinished.

        Entering raises what is wrong with the request, before any work.
        """
        engine = self._engines[work.target.base_model]
        async with (
            self._tally(work) as tally,
            self._place(work, work.choices),
            engine.stream(work.specs, work.target.adapter) as pieces,
            aclosing(_increments(pieces, tally)) as increments,
        ):
            yield Stream(increments, tally.usage)

    async def _sample_all(self, work: Work) -> list[SampleResult]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sample(work, spec)) for spec in work.specs]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _sample(self, work: Work, spec: SampleSpec) -> SampleResult:
        async with self._place(work, spec.num_samples):
            return await sample_on(self._engines[work.target.base_model], spec, work.target.adapter)

    def _place(self, work: Work, count: int) -> AbstractAsyncContextManager[None]:
        """An account's requests of a protocol wait in one line, as those of a sampling session do."""
        return self._engines.place(work.target.base_model, f"{work.protocol}/{work.owner}", count)

    @asynccontextmanager
    async def _tally(self, work: Work) -> AsyncGenerator[_Tally]:
        if work.choices > MAX_SAMPLES:
            raise WrongParameter(f"at most {MAX_SAMPLES} samples per request, not {work.choices}", "n")
        if self._draining:
            raise Leaving("this replica is about to end; send the request again, for another one to take")
        if self._open >= self._max_open:
            raise Overloaded(f"{self._open} requests are open; send this one again later")
        tally = _Tally(work, Usage(sum(len(spec.prompt) for spec in work.specs)))
        self._open += 1
        self._metrics.open.set(self._open)
        try:
            with _outcome(tally):
                yield tally
        finally:
            self._open -= 1
            self._metrics.open.set(self._open)
            await self._finished(tally)
            if self._draining and not self._open:
                self._idle.set()

    async def _finished(self, tally: _Tally) -> None:
        """Count what a request has used: all of it when it is done, of a stream what was told until it ended."""
        model, usage = tally.work.target.base_model, tally.usage
        self._metrics.finished.labels(model, tally.work.protocol, tally.outcome).inc()
        self._metrics.tokens.labels(model).inc(usage.completion_tokens)
        self._metrics.seconds.labels(model).observe(time.perf_counter() - tally.start)
        if tally.first_token_at is not None:
            since = tally.first_token_at - tally.arrived_at.timestamp()
            self._metrics.prompts.first_token(model, since)
        if tally.outcome == "done" or usage.completion_tokens:
            cached = min(usage.cached_tokens, usage.prompt_tokens)
            self._metrics.prompts.prompt(model, usage.prompt_tokens, cached)
            quantities = {
                UsageKind.PREFILL: usage.prompt_tokens - cached,
                UsageKind.PREFILL_CACHED: cached,
                UsageKind.SAMPLED: usage.completion_tokens,
            }
            # These requests have no session; a bill shows their protocol in its place.
            used = catalog.Usage(tally.work.protocol, model, quantities)
            await self._ledger.count(tally.work.owner, used)


def _choice(index: int, completion: Completion, spec: SampleSpec, tally: _Tally) -> Increment:
    if tally.work.prompts_only:
        return Increment(index, (), "length")
    transcript = Transcript(tally.work.vocabulary, spec.stops.strings)
    spans = [*transcript.add(completion), *transcript.finish()]
    tally.usage.completion_tokens += transcript.count
    finish = "stop" if transcript.stop is not None else completion.stop_reason
    return Increment(index, spans, finish, transcript.stop)


@contextmanager
def _outcome(tally: _Tally) -> Generator[None]:
    """Note how the work failed, if it does. A stream fails while it is read, which its context does not see."""
    try:
        yield
    except TinsmithError as error:
        tally.outcome = error.category
        raise
    except Exception:
        tally.outcome = "server"
        raise


async def _increments(pieces: AsyncIterator[Piece], tally: _Tally) -> AsyncGenerator[Increment]:
    """What readers may see of the pieces; ends with the last choice, whatever the engine still does."""
    specs, usage = tally.work.specs, tally.usage
    first = [sum(spec.num_samples for spec in specs[:request]) for request in range(len(specs))]
    transcripts = [
        Transcript(tally.work.vocabulary, spec.stops.strings)
        for spec in specs
        for _ in range(spec.num_samples)
    ]
    unfinished = set(range(len(transcripts)))
    with _outcome(tally):
        async for piece in pieces:
            tally.first_token_at = tally.first_token_at or time.time()
            choice = first[piece.request] + piece.index
            if choice not in unfinished:
                continue  # it was ended by a stop string that the engine has not noticed
            transcript = transcripts[choice]
            if piece.index == 0 and transcript.count == 0:
                usage.cached_tokens += piece.cached_tokens
            before = transcript.count
            spans = transcript.add(piece.grown)
            usage.completion_tokens += transcript.count - before
            if transcript.stop is None and not piece.last:
                yield Increment(choice, spans)
                continue
            spans += transcript.finish()
            unfinished.remove(choice)
            if not unfinished:
                tally.outcome = "done"
            finish = "stop" if transcript.stop is not None else piece.grown.stop_reason
            yield Increment(choice, spans, finish, transcript.stop)
            if not unfinished:
                return
