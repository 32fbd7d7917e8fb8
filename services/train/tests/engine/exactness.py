"""What the exactness tests compute, without pytest: `python -m tests.engine.exactness` prints the figures of a device.

Run it from `services/train` with `TINSMITH_TEST_DEVICE=cuda` on a GPU, where equality becomes a bound.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tinsmith_train.engine.model import prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import (
    AdamParams,
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    TrainerLimits,
)

DEVICE = os.environ.get("TINSMITH_TEST_DEVICE", "cpu")
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
VOCAB = 80


@dataclass(frozen=True)
class Tenant:
    """One user's work: the same submissions in each cycle, of datums of these lengths."""

    spec: LoraSpec
    submissions: tuple[tuple[int, ...], ...]
    loss: str = "cross_entropy"
    soft: bool = False


TENANTS = {
    "small": Tenant(LoraSpec(3, seed=1), ((1,), (70, 9))),
    "large": Tenant(LoraSpec(24, seed=2, train_unembed=False), ((40, 40, 3),), "ppo"),
    "head": Tenant(LoraSpec(8, seed=3, train_attn=False, train_mlp=False), ((33,),), "gspo"),
    "attention": Tenant(LoraSpec(1, seed=4, train_mlp=False, train_unembed=False), ((1, 33, 7), (5,)), "dro"),
    "soft": Tenant(LoraSpec(5, seed=5), ((12, 2),), soft=True),
}
"""Of different ranks, targets, losses and sizes; the first submits twice in a cycle, once a single token."""


@dataclass(frozen=True)
class Outcome:
    """All that a tenant can see of a run: logprobs and metrics of each cycle, then its state."""

    logprobs: tuple[np.ndarray[Any, Any], ...]
    metrics: tuple[Mapping[str, float], ...]
    gradients: torch.Tensor
    weights: torch.Tensor
    moments: torch.Tensor

    def difference(self, other: "Outcome") -> dict[str, float]:
        """Largest absolute difference of each kind; of tensors relative to their largest entry."""
        return {
            "logprobs": max(
                float(np.abs(a - b).max()) for a, b in zip(self.logprobs, other.logprobs, strict=True)
            ),
            "metrics": max(
                abs(a[name] - b[name])
                for a, b in zip(self.metrics, other.metrics, strict=True)
                for name in a.keys() | b.keys()
            ),
            "gradients": _apart(self.gradients, other.gradients),
            "weights": _apart(self.weights, other.weights),
            "moments": _apart(self.moments, other.moments),
        }

    def equals(self, other: "Outcome") -> bool:
        """Bit for bit."""
        return (
            all(np.array_equal(a, b) for a, b in zip(self.logprobs, other.logprobs, strict=True))
            and self.metrics == other.metrics
            and torch.equal(self.gradients, other.gradients)
            and torch.equal(self.weights, other.weights)
            and torch.equal(self.moments, other.moments)
        )


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def make_trainer(limits: TrainerLimits | None = None) -> LoraTrainer:
    """On a small random Qwen3, whose sizes the fused layers can take."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=VOCAB,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model: Any = Qwen3ForCausalLM(config).eval()
    return LoraTrainer(prepare_base_model("test/base", model.to(DEVICE, DTYPE)), limits)


def make_datum(seed: int, length: int, k: int | None = None) -> Datum:
    """Random tokens with every input that some loss reads."""
    rng = np.random.default_rng(seed)
    shape = (length,) if k is None else (length, k)
    inputs = {
        "weights": rng.normal(size=shape),
        "logprobs": -4 + 0.3 * rng.normal(size=shape),
        "advantages": rng.normal(size=shape),
        "sequence_ratio_mask": rng.integers(0, 2, size=shape),
    }
    return Datum(
        tokens=rng.integers(0, VOCAB, length),
        targets=rng.integers(0, VOCAB, shape),
        inputs={name: values.astype(np.float32) for name, values in inputs.items()},
    )


def submissions(name: str, tenant: Tenant, cycle: int) -> list[ForwardBackward]:
    """What the tenant sends in this cycle."""
    k = 3 if tenant.soft else None
    return [
        ForwardBackward(
            name,
            tuple(make_datum(1000 * cycle + 37 * place + n, n, k) for n in lengths),
            tenant.loss,
        )
        for place, lengths in enumerate(tenant.submissions)
    ]


def run(
    tenants: Mapping[str, Tenant],
    *,
    cycles: int = 1,
    limits: TrainerLimits | None = None,
    reverse: bool = False,
    noise: Sequence[int] = (),
) -> dict[str, Outcome]:
    """All tenants' cycles in shared passes, each with an optimizer step; then one more pass, whose gradient stays.

    reverse: the others come first. noise: lengths of datums of a bystander who only looks and who trains, too.
    """
    trainer = make_trainer(limits)
    for name, tenant in tenants.items():
        trainer.create_adapter(name, tenant.spec)
        # Not zero, so that A has a gradient from the first step on.
        generator = torch.Generator().manual_seed(tenant.spec.seed or 0)
        start = torch.empty(trainer.adapter(name).weights.shape).normal_(std=0.05, generator=generator)
        trainer.adapter(name).weights.data.copy_(start)
    seen: dict[str, tuple[list[Any], list[Mapping[str, float]]]] = {name: ([], []) for name in tenants}
    if noise:
        trainer.create_adapter("bystander", LoraSpec(6, seed=9))
    for cycle in range(cycles + 1):
        work = [item for name, tenant in tenants.items() for item in submissions(name, tenant, cycle)]
        extra = [ForwardBackward("bystander", (make_datum(n, n),), "cross_entropy") for n in noise]
        batch = [*extra, *work] if reverse else [*work, *extra]
        if reverse:
            batch.sort(key=lambda item: item.adapter_id, reverse=True)
        for item, result in zip(batch, trainer.forward_backward(batch), strict=True):
            assert isinstance(result, ForwardBackwardResult), result
            if item.adapter_id in seen:
                seen[item.adapter_id][0].extend(result.logprobs)
                seen[item.adapter_id][1].append(result.metrics)
        for name in tenants if cycle < cycles else ():
            step = AdamParams(1e-2 / (1 + cycle), weight_decay=0.1, grad_clip_norm=1.0)
            seen[name][1].append(trainer.optim_step(name, step))
    outcomes: dict[str, Outcome] = {}
    for name, (logprobs, metrics) in seen.items():
        adapter = trainer.adapter(name)
        moments = torch.cat([adapter.exp_avg, adapter.exp_avg_sq])
        outcomes[name] = Outcome(
            tuple(logprobs),
            tuple(metrics),
            *(t.detach().cpu() for t in (adapter.grad, adapter.weights, moments)),
        )
    return outcomes


def alone_against_merged(**options: Any) -> dict[str, dict[str, float]]:
    """By tenant, how far what it sees in company is from what it sees alone."""
    merged = run(TENANTS, **options)
    return {name: run({name: tenant})[name].difference(merged[name]) for name, tenant in TENANTS.items()}


def main() -> None:
    """Print the figures."""
    print(f"device {DEVICE}, {DTYPE}, torch {torch.__version__}")
    for name, difference in alone_against_merged(noise=(5, 200)).items():
        print(f"{name}: alone against merged", {k: f"{v:.1e}" for k, v in difference.items()})
    again = [run(TENANTS, cycles=10) for _ in range(2)]
    print("ten steps repeated, bitwise:", {name: again[0][name].equals(again[1][name]) for name in TENANTS})


if __name__ == "__main__":
    main()
