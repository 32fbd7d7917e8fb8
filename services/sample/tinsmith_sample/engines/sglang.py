"""The sampling engine: SGLang in a process of its own, kept up and fed here."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinsmith_common.errors import EngineFailure
from tinsmith_sample.engines import messages
from tinsmith_sample.engines.adapters import AdapterCache
from tinsmith_sample.engines.base import (
    Adapter,
    Completion,
    EngineLimits,
    EngineLost,
    PromptScores,
    SampleResult,
    SampleSpec,
    TopRow,
)
from tinsmith_sample.engines.checks import TARGET_MODULES, check_adapter, check_spec, completion_budget
from tinsmith_sample.engines.process import EngineProcess
from tinsmith_sample.engines.seeds import sample_seeds

_log = logging.getLogger(__name__)

# The scheduler answers between two batches; on a CPU one may take long.
_PING_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class EngineConfig:
    """How one base model is served.

    `model_path` is a folder or a hub id; `context_length` in tokens (None: the model's own); `device` is auto,
    cpu or cuda; `threads` for CPU work (None: half the cores). `engine_args` go to SGLang's `ServerArgs` by name
    and win over everything chosen here.
    """

    model_path: str
    context_length: int | None = None
    device: str = "auto"
    threads: int | None = None
    max_lora_rank: int = 128
    max_resident_adapters: int = 32
    adapters_per_batch: int = 8
    unload_timeout_s: float = 30.0
    start_timeout_s: float = 600.0
    engine_args: Mapping[str, Any] = field(default_factory=dict[str, Any])


class SGLangEngine:
    """`SamplingEngine` on SGLang. Every sample is one SGLang request, so all of them are batched together."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._process: EngineProcess | None = None
        self._launching: asyncio.Task[EngineProcess] | None = None
        self._adapters = AdapterCache(config.max_resident_adapters, self._load_adapter, self._unload_adapter)
        self._limits: EngineLimits | None = None
        self._sampled_tokens = 0
        self._stopped = False

    async def start(self) -> None:
        """Start the engine process; returns when it answers. Raises `EngineFailure`."""
        self._stopped = False
        await self._running()

    async def stop(self) -> None:
        """End the engine process and its workers."""
        self._stopped = True
        if self._launching is not None:
            self._launching.cancel()
            await asyncio.gather(self._launching, return_exceptions=True)
        if self._process is not None:
            await self._process.stop()
        self._process = self._launching = None
        self._adapters.forget()

    async def healthy(self) -> bool:
        """Whether SGLang's scheduler answers in time."""
        process = self._process
        if process is None or not process.alive:
            return False
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await process.ask(messages.Ping(id=process.new_id()))
        except (TimeoutError, EngineFailure):
            return False
        return True

    @property
    def limits(self) -> EngineLimits:
        """Sizes the engine reported. Raises `EngineFailure` before it was up once."""
        if self._limits is None:
            raise EngineFailure("the engine has not started yet")
        return self._limits

    @property
    def pid(self) -> int | None:
        """Process id of the engine's main process, None when it does not run."""
        return None if self._process is None else self._process.pid

    def stats(self) -> Mapping[str, float]:
        """Requests in the engine, tokens sampled since the start, adapters resident and stuck."""
        return {
            "requests": 0 if self._process is None else self._process.open_orders,
            "sampled_tokens": self._sampled_tokens,
            "adapters": len(self._adapters),
            "adapters_stuck": self._adapters.stuck,
        }

    async def sample(self, spec: SampleSpec, adapter: Adapter | None = None) -> SampleResult:
        """Sample as asked. Cancelling the call aborts its requests in the engine."""
        process = await self._running()
        check_spec(spec, self.limits)
        if adapter is None:
            return await self._sample(process, spec, None)
        async with self._adapters.use(adapter) as name:
            return await self._sample(process, spec, name)

    async def _sample(self, process: EngineProcess, spec: SampleSpec, adapter: str | None) -> SampleResult:
        orders = self._orders(process, spec, adapter)
        answers = await _all_or_none([process.ask(order) for order in orders])
        self._sampled_tokens += sum(len(answer.tokens) for answer in answers)
        return SampleResult(
            completions=tuple(_completion(answer, spec) for answer in answers),
            prompt=_prompt_scores(answers[0], spec) if _scores_prompt(spec) else None,
            cached_tokens=answers[0].cached_tokens,
        )

    def _orders(
        self, process: EngineProcess, spec: SampleSpec, adapter: str | None
    ) -> list[messages.Generate]:
        """One order per sample (SGLang's n > 1 keeps an adapter loaded for ever); the first scores the prompt."""
        budget = completion_budget(spec, self.limits)
        return [
            messages.Generate(
                id=process.new_id(),
                tokens=list(spec.prompt),
                sampling=_sampling_params(spec, budget, seed),
                stop_strings=list(spec.stops.strings),
                adapter=adapter,
                prompt_logprobs_from=_prompt_start(spec) if index == 0 and _scores_prompt(spec) else -1,
                top_logprobs=max(spec.topk_sample_logprobs, spec.topk_prompt_logprobs if index == 0 else 0),
            )
            for index, seed in enumerate(sample_seeds(spec.seed, spec.num_samples))
        ]

    async def _running(self) -> EngineProcess:
        """The live engine process, started anew if it has died."""
        if self._stopped:
            raise EngineLost("the engine is being stopped")
        if self._process is not None and self._process.alive:
            return self._process
        if self._launching is None or self._launching.done():
            self._launching = asyncio.create_task(self._launch())
        # Shielded: one caller's cancellation must not end the start that others wait for.
        return await asyncio.shield(self._launching)

    async def _launch(self) -> EngineProcess:
        if self._process is not None:
            _log.error("the engine process ended; starting another")
            await self._process.stop()
        self._adapters.forget()
        process, ready = await EngineProcess.launch(
            self._launch_order(), threads=self.config.threads, timeout_s=self.config.start_timeout_s
        )
        self._limits = EngineLimits(vocab_size=ready.vocab_size, context_length=ready.context_length)
        self._process = process
        return process

    def _launch_order(self) -> messages.Launch:
        args: dict[str, Any] = {
            "enable_lora": True,
            "max_lora_rank": self.config.max_lora_rank,
            "lora_target_modules": sorted(TARGET_MODULES),
            "max_loras_per_batch": self.config.adapters_per_batch,
            "enable_deterministic_inference": True,  # without it SGLang ignores seeds
            "sleep_on_idle": True,  # without it the scheduler spins on a whole core between requests
        }
        return messages.Launch(
            model_path=self.config.model_path,
            device=self.config.device,
            context_length=self.config.context_length,
            engine_args=args | dict(self.config.engine_args),
        )

    async def _load_adapter(self, name: str, adapter: Adapter) -> None:
        await asyncio.to_thread(check_adapter, adapter.folder, self.config.max_lora_rank)
        process = self._alive()
        await process.ask(messages.LoadAdapter(id=process.new_id(), name=name, folder=str(adapter.folder)))

    async def _unload_adapter(self, name: str) -> None:
        process = self._alive()
        timeout_s = self.config.unload_timeout_s
        await process.ask(messages.UnloadAdapter(id=process.new_id(), name=name, timeout_s=timeout_s))

    def _alive(self) -> EngineProcess:
        if self._process is None:
            raise EngineLost("the engine is not running")
        return self._process


async def _all_or_none(
    asked: Sequence[Coroutine[Any, Any, messages.Generated]],
) -> list[messages.Generated]:
    """All answers; after the first failure, or when cancelled, the rest is cancelled too."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sampling_params(spec: SampleSpec, budget: int, seed: int) -> dict[str, Any]:
    return {
        "max_new_tokens": budget,
        "temperature": spec.temperature,
        "top_k": spec.top_k,
        "top_p": spec.top_p,
        "sampling_seed": seed,
        "ignore_eos": not spec.stops.eos,
        "stop_token_ids": list(spec.stops.tokens) or None,
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }


def _scores_prompt(spec: SampleSpec) -> bool:
    return spec.prompt_logprobs or spec.topk_prompt_logprobs > 0


def _prompt_start(spec: SampleSpec) -> int:
    """First prompt position SGLang must look at; it scores from the one after."""
    if spec.prompt_logprobs_last_n is None:
        return 0
    return max(0, len(spec.prompt) - spec.prompt_logprobs_last_n - 1)


def _completion(answer: messages.Generated, spec: SampleSpec) -> Completion:
    k = spec.topk_sample_logprobs
    return Completion(
        tokens=tuple(answer.tokens),
        logprobs=np.asarray(answer.logprobs, dtype=np.float32),
        stop_reason="stop" if answer.stopped else "length",
        top=tuple(tuple(row[:k]) for row in answer.top or ()) if k else (),
    )


def _prompt_scores(answer: messages.Generated, spec: SampleSpec) -> PromptScores:
    """Place what the engine scored, the end of the prompt, into the whole prompt."""
    length = len(spec.prompt)
    wanted = min(length - 1, length if spec.prompt_logprobs_last_n is None else spec.prompt_logprobs_last_n)
    logprobs = np.full(length, np.nan, dtype=np.float32)
    rows: list[TopRow | None] = [None] * length
    if wanted:
        scored = (answer.prompt_logprobs or [])[-wanted:]
        logprobs[-wanted:] = [np.nan if value is None else value for value in scored]
        if k := spec.topk_prompt_logprobs:
            tops = (answer.prompt_top or [])[-wanted:]
            rows[-wanted:] = [None if row is None else tuple(row[:k]) for row in tops]
    return PromptScores(logprobs=logprobs, top=tuple(rows) if spec.topk_prompt_logprobs else ())
