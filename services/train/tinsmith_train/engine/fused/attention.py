"""Causal attention within the sequences of a packed row, with a backward pass that is called by hand."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_train.engine.fused.weights import Shape

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
        return cls(tuple(edges.tolist()), torch.from_numpy(edges).to(device), max(lengths))


@dataclass(frozen=True)
class Attended:
    """Output `[T, q_heads * head_dim]` with what its backward pass needs."""

    out: Tensor
    qkv: Tensor
    extras: tuple[Tensor, ...]


def attend(qkv: Tensor, bounds: Bounds, shape: Shape) -> Attended:
    """Attention of all heads; `qkv` is `[T, heads * head_dim]`."""
    if not qkv.is_cuda:
        return Attended(_reference(qkv, bounds, shape), qkv, ())
    q, k, v = _split(qkv, shape)
    # The operation below the public `varlen_attn`, which would want keys and values repeated for every query head.
    out, log_sum, rng, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds.cumulative, bounds.cumulative, bounds.longest, bounds.longest, 0.0, True, False,
        scale=shape.scaling,
    )  # fmt: skip
    return Attended(out.flatten(1), qkv, (log_sum, rng, unused))


def attend_backward(grad: Tensor, attended: Attended, bounds: Bounds, shape: Shape) -> Heads:
    """Gradients by query, key and value."""
    if not grad.is_cuda:
        return _reference_backward(grad, attended.qkv, bounds, shape)
    heads = (shape.q_heads, shape.head_dim)
    log_sum, rng, unused = attended.extras
    grads: Any = torch.ops.aten._flash_attention_backward(
        grad.unflatten(1, heads), *_split(attended.qkv, shape), attended.out.unflatten(1, heads), log_sum,
        bounds.cumulative, bounds.cumulative, bounds.longest, bounds.longest, 0.0, True, rng, unused,
        scale=shape.scaling,
    )  # fmt: skip
    return grads


def _split(qkv: Tensor, shape: Shape) -> Heads:
    q, k, v = qkv.unflatten(1, (shape.heads, shape.head_dim)).split(
        [shape.q_heads, shape.kv_heads, shape.kv_heads], dim=1
    )
    return q, k, v


def _reference(qkv: Tensor, bounds: Bounds, shape: Shape) -> Tensor:
    """On the CPU, where the kernels are only interpreted, for tests."""
    outputs: list[Tensor] = []
    for start, stop in pairwise(bounds.edges):
        q, k, v = (part[start:stop].transpose(0, 1)[None] for part in _split(qkv, shape))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=shape.scaling, enable_gqa=True)
        outputs.append(out[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def _reference_backward(grad: Tensor, qkv: Tensor, bounds: Bounds, shape: Shape) -> Heads:
    with torch.enable_grad():
        leaf = qkv.detach().requires_grad_()
        (g,) = torch.autograd.grad(_reference(leaf, bounds, shape), leaf, grad)
    return _split(g, shape)
