"""Causal attention within the sequences of a packed row, with a backward pass that is called by hand."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_train.engine.fused.weights import Shape
from tinsmith_train.engine.transfer import upload

Heads = tuple[Tensor, Tensor, Tensor]
"""Query `[T, q_heads, head_dim]`, key and value `[T, kv_heads, head_dim]`."""


@dataclass(frozen=True)
class Bounds:
    """Where the sequences of a row begin and end, on the host and (int32) on the device, and the longest."""

    edges: tuple[int, ...]
    cumulative: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> "Bounds":
        """Describe sequences with these lengths, in order."""
        edges = np.cumsum((0, *lengths), dtype=np.int32)
        return cls(tuple(edges.tolist()), upload(edges, device), max(lengths))


@dataclass(frozen=True)
class Attended:
    """Output `[T, q_heads * head_dim]` with what its backward pass needs."""

    out: Tensor
    qkv: Tensor
    extras: tuple[Tensor, ...]


class Attention(Protocol):
    """One way to compute it, for one shape of heads."""

    def forward(self, qkv: Tensor, bounds: Bounds) -> Attended:
        """Attention of all heads; `qkv` is `[T, heads * head_dim]`."""
        ...

    def backward(self, grad: Tensor, attended: Attended, bounds: Bounds) -> Heads:
        """Gradients by query, key and value. grad: `[T, q_heads * head_dim]`."""
        ...


class Flash2:
    """FlashAttention 2 as torch brings it.

    These are the operations below the public `varlen_attn`, which would want keys and values repeated for every
    query head.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def forward(self, qkv: Tensor, bounds: Bounds) -> Attended:
        """See `Attention`."""
        q, k, v = split(qkv, self._shape)
        out, log_sum, rng, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, bounds.cumulative, bounds.cumulative, bounds.longest, bounds.longest, 0.0, True, False,
            scale=self._shape.scaling,
        )  # fmt: skip
        return Attended(out.flatten(1), qkv, (log_sum, rng, unused))

    def backward(self, grad: Tensor, attended: Attended, bounds: Bounds) -> Heads:
        """See `Attention`."""
        heads = (self._shape.q_heads, self._shape.head_dim)
        log_sum, rng, unused = attended.extras
        grads: Any = torch.ops.aten._flash_attention_backward(
            grad.unflatten(1, heads), *split(attended.qkv, self._shape), attended.out.unflatten(1, heads), log_sum,
            bounds.cumulative, bounds.cumulative, bounds.longest, bounds.longest, 0.0, True, rng, unused,
            scale=self._shape.scaling,
        )  # fmt: skip
        return grads


class Reference:
    """On the CPU, where the kernels are only interpreted, for tests."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def forward(self, qkv: Tensor, bounds: Bounds) -> Attended:
        """See `Attention`."""
        outputs: list[Tensor] = []
        for start, stop in pairwise(bounds.edges):
            q, k, v = (part[start:stop].transpose(0, 1)[None] for part in split(qkv, self._shape))
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self._shape.scaling, enable_gqa=True
            )
            outputs.append(out[0].transpose(0, 1).flatten(1))
        return Attended(torch.cat(outputs), qkv, ())

    def backward(self, grad: Tensor, attended: Attended, bounds: Bounds) -> Heads:
        """See `Attention`."""
        with torch.enable_grad():
            leaf = attended.qkv.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.forward(leaf, bounds).out, leaf, grad)
        return split(g, self._shape)


def split(qkv: Tensor, shape: Shape) -> Heads:
    """Views of the heads of `[T, heads * head_dim]`."""
    q, k, v = qkv.unflatten(1, (shape.heads, shape.head_dim)).split(
        [shape.q_heads, shape.kv_heads, shape.kv_heads], dim=1
    )
    return q, k, v
