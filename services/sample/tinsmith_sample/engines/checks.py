"""Everything that is wrong with a request or an adapter, said before the engine sees it.

SGLang never releases an adapter whose request it refused (it can then not be unloaded any more), and a tensor of
the wrong shape ends its worker. So nothing it would refuse may reach it.
"""

import json
import math
from pathlib import Path
from typing import Any

from tinsmith_common.errors import InvalidInput
from tinsmith_sample.engines.base import EngineLimits, SampleSpec

MAX_STOPS = 32
MAX_TOP_LOGPROBS = 64
MAX_SAMPLES = 1024
TARGET_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
)

_FUSED = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))
"""Modules that SGLang runs as one matrix."""


def check_spec(spec: SampleSpec, limits: EngineLimits) -> None:
    """Raise `InvalidInput` with what to change if the engine could not carry this out."""
    _check_prompt(spec, limits)
    _check_range("num_samples", spec.num_samples, 1, MAX_SAMPLES)
    if spec.max_tokens is not None and spec.max_tokens < 1:
        raise InvalidInput(f"max_tokens must be at least 1, not {spec.max_tokens}")
    if not (math.isfinite(spec.temperature) and spec.temperature >= 0):
        raise InvalidInput(f"temperature must be a number from 0, not {spec.temperature}")
    if not 0 < spec.top_p <= 1:
        raise InvalidInput(f"top_p must be above 0 and at most 1, not {spec.top_p}")
    if spec.top_k != -1 and spec.top_k < 1:
        raise InvalidInput(f"top_k must be at least 1, or -1 for none, not {spec.top_k}")
    if spec.prompt_logprobs_last_n is not None and spec.prompt_logprobs_last_n < 0:
        raise InvalidInput(f"prompt_logprobs_last_n must be at least 0, not {spec.prompt_logprobs_last_n}")
    top = min(MAX_TOP_LOGPROBS, limits.vocab_size)
    _check_range("topk_prompt_logprobs", spec.topk_prompt_logprobs, 0, top)
    _check_range("topk_sample_logprobs", spec.topk_sample_logprobs, 0, top)
    _check_scores(spec, limits)
    _check_stops(spec, limits)


def completion_budget(spec: SampleSpec, limits: EngineLimits) -> int:
    """Tokens a completion may have: what is asked for, cut to what the context leaves."""
    left = limits.context_length - len(spec.prompt)
    return left if spec.max_tokens is None else min(spec.max_tokens, left)


def check_adapter(folder: Path, max_rank: int) -> None:
    """Raise `InvalidInput` if the PEFT folder is not one this engine serves exactly."""
    path = folder / "adapter_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the sampler weights have no readable adapter_config.json: {error}") from error
    if not (folder / "adapter_model.safetensors").is_file():
        raise InvalidInput("the sampler weights have no adapter_model.safetensors")
    rank = config.get("r", 0)
    if not 1 <= rank <= max_rank:
        raise InvalidInput(f"adapters of rank 1 to {max_rank} are served, not {rank} (setting MAX_LORA_RANK)")
    targets = set(config.get("target_modules") or ())
    if not targets or not targets <= TARGET_MODULES:
        raise InvalidInput(f"adapters on {sorted(TARGET_MODULES)} are served, not on {sorted(targets)}")
    for fused in _FUSED:
        if targets & fused and not fused <= targets:
            raise InvalidInput(f"adapters on {sorted(fused)} are served on all of them, not on some")
    for option in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(option):
            raise InvalidInput(f"adapters with {option} are not served")


def _check_prompt(spec: SampleSpec, limits: EngineLimits) -> None:
    if not spec.prompt:
        raise InvalidInput("the prompt is empty: send at least one token")
    if len(spec.prompt) >= limits.context_length:
        raise InvalidInput(
            f"the prompt has {len(spec.prompt)} tokens; with at least one new token the context of "
            f"{limits.context_length} leaves room for {limits.context_length - 1}"
        )
    _check_tokens("prompt", spec.prompt, limits)


def _check_tokens(where: str, tokens: tuple[int, ...], limits: EngineLimits) -> None:
    if tokens and (min(tokens) < 0 or max(tokens) >= limits.vocab_size):
        wrong = next(token for token in tokens if not 0 <= token < limits.vocab_size)
        raise InvalidInput(f"token id {wrong} in {where} is outside the vocabulary of {limits.vocab_size}")


def _check_scores(spec: SampleSpec, limits: EngineLimits) -> None:
    targets = () if spec.targets is None else spec.targets.ids
    _check_tokens("target_prompt_logprobs", targets, limits)
    count = len(targets) + spec.prompt_alternatives * (len(spec.prompt) - 1)
    if count > limits.prompt_scores:
        raise InvalidInput(
            f"{count} scores of prompt positions are asked for: {len(targets)} ids of target_prompt_logprobs, and "
            f"prompt_alt_tokens_k {spec.prompt_alternatives} at {len(spec.prompt) - 1} positions. One request may ask "
            f"for {limits.prompt_scores} (setting MAX_PROMPT_SCORES); send several"
        )


def _check_stops(spec: SampleSpec, limits: EngineLimits) -> None:
    if len(spec.stops.strings) > MAX_STOPS:
        raise InvalidInput(f"at most {MAX_STOPS} stop strings are possible, not {len(spec.stops.strings)}")
    if not all(spec.stops.strings):
        raise InvalidInput("a stop string must not be empty")
    _check_tokens("stop", spec.stops.tokens, limits)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{name} must be from {low} to {high}, not {value}")
