"""One adapter: all its LoRA matrices in one flat fp32 buffer, with flat gradient and moments beside it.

The optimizer, clipping, snapshots, saving and loading work on the flat buffers; autograd works on views.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.optimizer import adamw_step
from tinsmith_train.engine.types import AdamParams, LoraSpec

WEIGHTS_FILE = "adapter_model.safetensors"
Group = Literal["attn", "mlp", "unembed"]


@dataclass(frozen=True)
class LoraTarget:
    """A linear layer `[out_features, in_features]` of the base model that can carry a delta.

    a_stack, b_stack: for a stack of experts, how many matrices A and B have: one for each expert, or 1 that all
                      share. None: the layer is no stack, and A and B have two dimensions.
    module:           what PEFT calls the layer, the last part of its path unless said otherwise.
    """

    path: str
    in_features: int
    out_features: int
    group: Group
    a_stack: int | None = None
    b_stack: int | None = None
    module: str = ""

    def __post_init__(self) -> None:
        if not self.module:
            object.__setattr__(self, "module", self.path.rpartition(".")[2])

    def sizes(self, rank: int) -> tuple[int, int]:
        """Elements of A and of B."""
        return (
            (self.a_stack or 1) * rank * self.in_features,
            (self.b_stack or 1) * rank * self.out_features,
        )

    def shaped(self, a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Flat memory of A and B as matrices, see `LoraPair`."""
        a_stack = () if self.a_stack is None else (self.a_stack,)
        b_stack = () if self.b_stack is None else (self.b_stack,)
        return a.view(*a_stack, rank, self.in_features), b.view(*b_stack, rank, self.out_features).mT


@dataclass(frozen=True)
class LoraPair:
    """Views into an adapter's buffers: A `[rank, in]` and B `[out, rank]`, autograd leaves, and their gradients.

    B lies in memory as `[rank, out]`, as A does as `[rank, in]`: kernels read both along the wide side. Stacks of
    experts have a first dimension more.
    """

    a: Tensor
    b: Tensor
    a_grad: Tensor
    b_grad: Tensor


def wanted_targets(targets: Sequence[LoraTarget], spec: LoraSpec) -> tuple[LoraTarget, ...]:
    """The layers this adapter trains. Raises `InvalidInput` if the model has none of them."""
    groups = {"attn": spec.train_attn, "mlp": spec.train_mlp, "unembed": spec.train_unembed}
    wanted = tuple(target for target in targets if groups[target.group])
    if not wanted:
        raise InvalidInput("the base model has no linear layer in the groups to train")
    return wanted


class Adapter:
    """Weights, accumulated gradient and optimizer state of one LoRA adapter.

    Fresh adapters draw A uniformly from +-1/sqrt(in), B is zero.

    weights, grad, exp_avg, exp_avg_sq: flat fp32 on the model's device.
    pairs:    the same weights by module path.
    step:     optimizer steps taken.
    has_grad: whether anything was accumulated since the last step.
    weights_file: of a checkpoint.
    """

    def __init__(self, spec: LoraSpec, targets: Sequence[LoraTarget], device: torch.device) -> None:
        self.spec = spec
        self.targets = wanted_targets(targets, spec)
        self.weights_file = WEIGHTS_FILE
        self._allocate(sum(sum(target.sizes(spec.rank)) for target in self.targets), device)
        self.pairs = self._make_pairs()
        self._init_weights()

    @property
    def scale(self) -> float:
        """Factor of `B A`."""
        return self.spec.alpha / self.spec.rank

    def views(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B by module path as views into one of the flat buffers."""
        views: dict[str, tuple[Tensor, Tensor]] = {}
        offset, rank = 0, self.spec.rank
        for target in self.targets:
            a, b = target.sizes(rank)
            parts = flat[offset : offset + a], flat[offset + a : offset + a + b]
            views[target.path] = target.shaped(*parts, rank)
            offset += a + b
        return views

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views into one of the flat buffers, by PEFT's tensor names."""
        return {
            f"base_model.model.{path}.lora_{side}.weight": tensor
            for path, pair in self.views(flat).items()
            for side, tensor in zip("AB", pair, strict=True)
        }

    def optim_step(self, params: AdamParams) -> dict[str, float]:
        """One AdamW step with the accumulated gradient, which is cleared. Returns metrics."""
        try:
            metrics = adamw_step(
                self.weights, self.grad, self.exp_avg, self.exp_avg_sq, self.step + 1, params
            )
        finally:
            self.clear_grad()
        self.step += 1
        return metrics

    def clear_grad(self) -> None:
        """Forget the accumulated gradient."""
        self.grad.zero_()
        self.has_grad = False

    def _allocate(self, size: int, device: torch.device) -> None:
        self.weights, self.grad, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(size, dtype=torch.float32, device=device) for _ in range(4)
        )
        self.step = 0
        self.has_grad = False

    def _make_pairs(self) -> dict[str, LoraPair]:
        grads = self.views(self.grad)
        pairs: dict[str, LoraPair] = {}
        for path, (a, b) in self.views(self.weights).items():
            a.requires_grad_().grad, b.requires_grad_().grad = grads[path]
            pairs[path] = LoraPair(a, b, *grads[path])
        return pairs

    @torch.no_grad()
    def _init_weights(self) -> None:
        generator = torch.Generator()
        if self.spec.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.spec.seed)
        for pair in self.pairs.values():
            bound = 1 / math.sqrt(pair.a.shape[-1])
            pair.a.copy_(torch.empty(pair.a.shape).uniform_(-bound, bound, generator=generator))
