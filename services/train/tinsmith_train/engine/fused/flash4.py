"""FlashAttention 4 (`flash-attn-4`, compiled on first use for Hopper and Blackwell), where it is installed."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tinsmith_train.engine.fused.attention import Attended, Bounds, Heads, split
from tinsmith_train.engine.fused.weights import Shape

HEAD_DIMS = (64, 96, 128)
"""Of its kernels for Hopper those that take every mix of lengths and grouped heads."""

_ARCHITECTURES = (9, 10)

_ONE_BLOCK = 256
"""Rows no longer than a block would get kernels of their own, compiled anew: call them longer than they are."""


class Flash4:
    """Satisfies `Attention`. Reads and writes the heads where the fused projections have them, without copies."""

    def __init__(self, shape: Shape) -> None:
        from flash_attn.cute import interface  # pyright: ignore[reportMissingImports]

        library: Any = interface
        self._shape = shape
        # The steps below the public function, which would keep a graph of autograd for every layer.
        self._forward: Any = library._flash_attn_fwd
        self._backward: Any = library._flash_attn_bwd

    @staticmethod
    def takes(shape: Shape, device: torch.device) -> bool:
        """Whether the package is installed and has kernels for these heads on this device."""
        return (
            shape.head_dim in HEAD_DIMS
            and torch.cuda.get_device_capability(device)[0] in _ARCHITECTURES
            and find_spec("flash_attn") is not None
            and find_spec("flash_attn.cute") is not None
        )

    def forward(self, qkv: Tensor, bounds: Bounds) -> Attended:
        """See `Attention`."""
        q, k, v = split(qkv, self._shape)
        out, log_sum, *_ = self._forward(q, k, v, return_lse=True, **self._options(bounds))
        return Attended(out.flatten(1), qkv, (log_sum,))

    def backward(self, grad: Tensor, attended: Attended, bounds: Bounds) -> Heads:
        """See `Attention`."""
        heads = (self._shape.q_heads, self._shape.head_dim)
        q, k, v = split(attended.qkv, self._shape)
        (log_sum,) = attended.extras
        grads: Any = self._backward(
            q,
            k,
            v,
            attended.out.unflatten(1, heads),
            grad.unflatten(1, heads),
            log_sum,
            **self._options(bounds),
        )
        return grads

    def _options(self, bounds: Bounds) -> dict[str, Any]:
        longest = max(bounds.longest, _ONE_BLOCK + 1)
        return {
            "cu_seqlens_q": bounds.cumulative, "cu_seqlens_k": bounds.cumulative,
            "max_seqlen_q": longest, "max_seqlen_k": longest,
            "softmax_scale": self._shape.scaling, "causal": True,
        }  # fmt: skip
