"""What the protocol defines, computed again: the losses in float64, the base model by Hugging Face."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL_FOLDER = Path(__file__).parents[2] / "models" / "tiny-qwen3"

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float]
LossFunction = Callable[[Tensor, Inputs, Config], Tensor]


def base_model() -> Any:
    """The base model that the tests train, without adapters, in float32."""
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


def tokenizer() -> Any:
    """The base model's."""
    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


def next_logprobs(model: Any, tokens: list[int]) -> Tensor:
    """Log-probabilities of every token after each position, `[len(tokens), vocabulary]`."""
    return torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0].float(), -1)


def cross_entropy(lp: Tensor, inputs: Inputs, _config: Config) -> Tensor:
    return -(inputs["weights"] * lp).sum()


def importance_sampling(lp: Tensor, inputs: Inputs, _config: Config) -> Tensor:
    return -((lp - inputs["logprobs"]).exp() * inputs["advantages"]).sum()


def ppo(lp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    ratio, a = (lp - inputs["logprobs"]).exp(), inputs["advantages"]
    return -torch.minimum(ratio * a, _clamped(ratio, inputs, config, 0.8, 1.2) * a).sum()


def cispo(lp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    ratio = (lp - inputs["logprobs"]).exp()
    return -(_clamped(ratio, inputs, config, 0.0, 4.0).detach() * lp * inputs["advantages"]).sum()


def dro(lp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    beta = config.get("beta", 0.05)
    return -(lp * inputs["advantages"] - 0.5 * beta * (lp - inputs["logprobs"]) ** 2).sum()


def gspo(lp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    a = inputs["advantages"]
    mask = inputs.get("sequence_ratio_mask", (a != 0).double()) != 0
    distance = (lp.detach() - inputs["logprobs"])[mask]
    sequence = distance.mean().exp() if mask.any() else torch.ones((), dtype=lp.dtype)
    ratio = sequence * (lp - lp.detach()).exp()
    return -torch.minimum(ratio * a, _clamped(ratio, inputs, config, 0.8, 1.2) * a).sum()


def _clamped(ratio: Tensor, inputs: Inputs, config: Config, low: float, high: float) -> Tensor:
    """Bounds are the ratio's own, per token where the datum says so."""
    bounds = [
        inputs.get(name, torch.full_like(ratio, config.get(name, default)))
        for name, default in (("clip_low_threshold", low), ("clip_high_threshold", high))
    ]
    return torch.minimum(torch.maximum(ratio, bounds[0]), bounds[1])
