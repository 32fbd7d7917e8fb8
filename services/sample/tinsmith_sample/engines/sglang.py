"""The sampling engine: SGLang in a process of its own, kept up and fed here."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from tinsmith_common.errors import EngineFailure
from tinsmith_sample.engines import messages, prompts
from tinsmith_sample.engines.adapters import AdapterCache
from tinsmith_sample.engines.base import (
    Adapter,
    Completion,
    EngineLimits,
    EngineLost,
    Piece,
    ResidentAdapter,
    SampleResult,
    SampleSpec,
)
from tinsmith_sample.engines.checks import TARGET_MODULES, check_adapter, check_spec, completion_budget
from tinsmith_sample.engines.process import EngineProcess
from tinsmith_sample.engines.seeds import sample_seeds

_log = logging.getLogger(__name__)

# The scheduler answers between two batches; on a CPU one may take long.
_PING_TIMEOUT_S = 30.0

_UNKNOWN = EngineLimits(vocab_size=0, context_length=0)


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
    max_prompt_scores: int = 2**18
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
        self._load: messages.Load | None = None
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
                self._load = await process.ask(messages.Ping(id=process.new_id()))
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
    def capacity(self) -> int:
        """Samples that SGLang has in its batch at most; a guess until it was up once."""
        return (self._limits or _UNKNOWN).running

    @property
    def pid(self) -> int | None:
        """Process id of the engine's main process, None when it does not run."""
        return None if self._process is None else self._process.pid

    def stats(self) -> Mapping[str, float]:
        """Requests given to SGLang; what its scheduler had of them at the last `healthy`; tokens sampled since the
        start; adapters resident and stuck."""
        return {
            "running_requests": 0 if self._load is None else self._load.running,
            "waiting_requests": 0 if self._load is None else self._load.waiting,
            "requests": 0 if self._process is None else self._process.open_orders,
            "sampled_tokens": self._sampled_tokens,
            "adapters": len(self._adapters),
            "adapters_stuck": self._adapters.stuck,
        }

    def residents(self) -> Sequence[ResidentAdapter]:
        """The resident adapters, the one that was used longest ago first."""
        return self._adapters.residents()

    async def sample(self, spec: SampleSpec, adapter: Adapter | None = None) -> SampleResult:
        """Sample as asked. Cancelling the call aborts its requests in the engine."""
        process = await self._running()
        check_spec(spec, self.limits)
        if adapter is None:
            return await self._sample(process, self._orders(process, spec, None, None), spec)
        async with self._adapters.use(adapter) as name:
            orders = self._orders(process, spec, name, adapter.cache_namespace)
            return await self._sample(process, orders, spec)

    @asynccontextmanager
    async def stream(
        self, specs: Sequence[SampleSpec], adapter: Adapter | None = None
    ) -> AsyncGenerator[AsyncIterator[Piece]]:
        """Sample token by token. Leaving aborts what is unfinished and lets the adapter go."""
        process = await self._running()
        for spec in specs:
            check_spec(spec, self.limits)
        async with AsyncExitStack() as held:
            namespace = adapter.cache_namespace if adapter else None
            name = await held.enter_async_context(self._adapters.use(adapter)) if adapter else None
            yield await held.enter_async_context(aclosing(self._pieces(process, specs, name, namespace)))

    async def _pieces(
        self, process: EngineProcess, specs: Sequence[SampleSpec], adapter: str | None, namespace: str | None
    ) -> AsyncGenerator[Piece]:
        orders: list[messages.Generate] = []
        places: dict[int, tuple[int, int]] = {}
        for request, spec in enumerate(specs):
            for index, order in enumerate(self._orders(process, spec, adapter, namespace)):
                orders.append(msgspec.structs.replace(order, stream=True, prompt_logprobs_from=-1))
                places[order.id] = request, index
        async with aclosing(process.stream(orders)) as parts:
            async for grown in parts:
                request, index = places[grown.id]
                self._sampled_tokens += len(grown.part.tokens)
                completion = _completion(grown.part, specs[request])
                yield Piece(request, index, completion, grown.last, grown.part.cached_tokens)

    async def _sample(
        self, process: EngineProcess, orders: Sequence[messages.Generate], spec: SampleSpec
    ) -> SampleResult:
        answers = await _all_or_none([process.ask(order) for order in orders])
        self._sampled_tokens += sum(len(answer.tokens) for answer in answers)
        return SampleResult(
            completions=tuple(_completion(answer, spec) for answer in answers),
            prompt=prompts.prompt_scores(answers[0], spec),
            cached_tokens=answers[0].cached_tokens,
            targets=prompts.target_scores(answers[0], spec),
            alternatives=prompts.alternatives(answers[0], spec),
            first_token_at=min((at for answer in answers if (at := answer.first_token_at)), default=None),
        )

    def _orders(
        self, process: EngineProcess, spec: SampleSpec, adapter: str | None, cache_namespace: str | None
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
                prompt_logprobs_from=prompts.prompt_start(spec) if index == 0 else -1,
                top_logprobs=max(spec.topk_sample_logprobs, spec.topk_prompt_logprobs if index == 0 else 0),
                scoring=prompts.scoring(spec) if index == 0 else None,
                cache_namespace=cache_namespace,
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
        self._load = None
        process, ready = await EngineProcess.launch(
            launch_order(self.config), threads=self.config.threads, timeout_s=self.config.start_timeout_s
        )
        self._limits = EngineLimits(
            vocab_size=ready.vocab_size,
            context_length=ready.context_length,
            prompt_scores=self.config.max_prompt_scores,
            running=ready.running,
        )
        self._process = process
        return process

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


def launch_order(config: EngineConfig) -> messages.Launch:
    """How the engine process of `config` is told to build its engine."""
    args: dict[str, Any] = {
        "enable_lora": True,
        "max_lora_rank": config.max_lora_rank,
        "lora_target_modules": sorted(TARGET_MODULES),
        "max_loras_per_batch": config.adapters_per_batch,
        "enable_deterministic_inference": True,  # without it SGLang ignores seeds
        "incremental_streaming_output": True,  # each part of a stream holds what is new, not the whole again
        "sleep_on_idle": True,  # without it the scheduler spins on a whole core between requests
    }
    return messages.Launch(
        model_path=config.model_path,
        device=config.device,
        context_length=config.context_length,
        engine_args=args | dict(config.engine_args),
    )


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


def _completion(answer: messages.Generated, spec: SampleSpec) -> Completion:
    k = spec.topk_sample_logprobs
    return Completion(
        tokens=tuple(answer.tokens),
        logprobs=np.asarray(answer.logprobs, dtype=np.float32),
        stop_reason="stop" if answer.stopped else "length",
        top=tuple(tuple(row[:k]) for row in answer.top or ()) if k else (),
    )
