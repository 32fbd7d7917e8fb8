"""A whole decoder as one step of autograd: what is kept, and in which order gradients are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinsmith_train.engine.decoder import Owner
from tinsmith_train.engine.fused import attention, ops
from tinsmith_train.engine.fused.flash4 import Flash4
from tinsmith_train.engine.fused.lora import FactorCopies
from tinsmith_train.engine.fused.ops import A_SIDE, B_SIDE, Columns, Lora
from tinsmith_train.engine.fused.weights import MODULES, LayerWeights, Shape, layer_weights

_QKV, _O, _GATE_UP, _DOWN = 0, 3, 4, 6
"""Places of a layer's first module of each kind in `MODULES`."""

_SHARE_OF_FREE = 0.7


@dataclass(frozen=True)
class _Row:
    """What every layer of one pass reads. cos, sin: fp32 `[T, head_dim / 2]`."""

    lora: Lora
    bounds: attention.Bounds
    cos: Tensor
    sin: Tensor


@dataclass
class _Kept:
    """What a layer's backward pass needs of its forward pass; it is used up there."""

    h: Tensor
    x1: Tensor
    rstd1: Tensor
    d_qkv: Tensor
    qkv_base: Tensor
    attended: attention.Attended
    d_o: Tensor
    h_mid: Tensor
    x2: Tensor
    rstd2: Tensor
    d_gate_up: Tensor
    gate_up: Tensor
    d_down: Tensor


class FusedDecoder:
    """Satisfies `Decoder` for the models of `weights.shape_of`, in the dtype of their weights.

    deterministic: sum weight gradients in one order, which leaves much of the GPU idle.
    keep_bytes: activations kept between forward and backward. Layers over that run again in the backward pass; None
    is what the device has left.
    """

    def __init__(
        self,
        module: nn.Module,
        prefix: str,
        shape: Shape,
        *,
        deterministic: bool = False,
        keep_bytes: int | None = None,
    ) -> None:
        parts: Any = module
        self._embedding: Tensor = parts.embed_tokens.weight
        self._rotary: nn.Module = parts.rotary_emb
        self._layers = [layer_weights(layer) for layer in parts.layers]
        self._final_norm: Tensor = parts.norm.weight
        self._shape = shape
        self._attention = _attention_for(shape, self._embedding.device, deterministic=deterministic)
        self._deterministic = deterministic
        self._keep_bytes = keep_bytes
        self._factors = FactorCopies(
            [f"{prefix}.layers.{number}.{name}" for number in range(len(self._layers)) for name in MODULES],
            self._embedding.dtype,
        )
        self._columns = _LayerColumns(shape, self._embedding.device)

    def hidden(
        self, tokens: Tensor, positions: Tensor, lengths: tuple[int, ...], owners: Sequence[Owner]
    ) -> Tensor:
        """See `Decoder`."""
        row = self._row(positions, lengths, owners)
        h = F.embedding(tokens, self._embedding)
        if not torch.is_grad_enabled():
            return self.forward(h, row, kept=None)[0]
        # Autograd calls a function back only if one of its inputs wants a gradient; the frozen embedding does not.
        anchor = torch.empty(0, device=h.device, requires_grad=True)
        result: Tensor = _Decode.apply(anchor, self, h, row)
        return result

    def _row(self, positions: Tensor, lengths: tuple[int, ...], owners: Sequence[Owner]) -> _Row:
        device = positions.device
        cos, sin = self._rotary(torch.empty(0, dtype=torch.float32, device=device), positions[None])
        half = self._shape.head_dim // 2
        return _Row(
            Lora(self._factors.plan(owners, deterministic=self._deterministic)),
            attention.Bounds.of(lengths, device),
            cos[0, :, :half].contiguous(),
            sin[0, :, :half].contiguous(),
        )

    @property
    def bytes_per_token(self) -> int:
        """What one token's activations take up when every layer keeps its own."""
        shape = self._shape
        q, qkv = shape.q_heads * shape.head_dim, shape.heads * shape.head_dim
        width = 4 * shape.hidden + 2 * qkv + q + 2 * shape.intermediate
        return len(self._layers) * width * self._embedding.element_size()

    def _layers_to_repeat(self, tokens: int) -> int:
        """How many of the first layers keep their input only, so that the others' activations fit."""
        available = self._keep_bytes
        if available is None:
            free, _ = torch.cuda.mem_get_info(self._embedding.device)
            unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            # The rest is for what lives for one layer only, and for the logits.
            available = int(_SHARE_OF_FREE * (free + unused))
        layer = tokens * self.bytes_per_token // len(self._layers)
        return max(0, len(self._layers) - available // layer)

    def forward(
        self, h: Tensor, row: _Row, kept: list[_Kept | Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The normed hidden states, and the sum and `1 / rms` of which they were made."""
        y: Tensor | None = None
        repeat = 0 if kept is None else self._layers_to_repeat(len(h))
        for number, weights in enumerate(self._layers):
            layer, y = self._layer(number, weights, h, y, row)
            h = layer.h_mid
            if kept is not None:
                kept.append(layer.h if number < repeat else layer)
        summed, out, rstd = ops.norm(h, y, self._final_norm, self._shape.eps)
        return out, summed, rstd

    def _layer(
        self, number: int, w: LayerWeights, h: Tensor, y: Tensor | None, row: _Row
    ) -> tuple[_Kept, Tensor]:
        """One layer on `h + y`. Its output is `h_mid` of what is kept plus the tensor returned beside it."""
        shape, columns, lora, first = self._shape, self._columns, row.lora, number * len(MODULES)
        h, x1, rstd1 = ops.norm(h, y, w.norm1, shape.eps)
        d_qkv = lora.project(x1, first + _QKV, columns.qkv_in, A_SIDE)
        qkv_base = F.linear(x1, w.qkv, w.qkv_bias)
        qkv = lora.heads(qkv_base, d_qkv, first + _QKV, w, shape, row.cos, row.sin)
        attended = self._attention.forward(qkv, row.bounds)
        d_o = lora.project(attended.out, first + _O, columns.o_in, A_SIDE)
        y = attended.out @ w.o.T
        lora.add(y, d_o, first + _O, 1, B_SIDE)
        h_mid, x2, rstd2 = ops.norm(h, y, w.norm2, shape.eps)
        d_gate_up = lora.project(x2, first + _GATE_UP, columns.gate_up_in, A_SIDE)
        gate_up = x2 @ w.gate_up.T
        act = lora.swiglu(gate_up, d_gate_up, first + _GATE_UP)
        d_down = lora.project(act, first + _DOWN, columns.down_in, A_SIDE)
        y = act @ w.down.T
        lora.add(y, d_down, first + _DOWN, 1, B_SIDE)
        kept = _Kept(
            h, x1, rstd1, d_qkv, qkv_base, attended, d_o, h_mid, x2, rstd2, d_gate_up, gate_up, d_down
        )
        return kept, y

    def backward(
        self, grad_hidden: Tensor, row: _Row, kept: list[_Kept | Tensor], summed: Tensor, rstd: Tensor
    ) -> None:
        """Add to the adapters' gradients, from that of `forward`'s result. Uses up what was kept."""
        grad = ops.norm_backward(grad_hidden, summed, self._final_norm, rstd, None)
        for number in reversed(range(len(self._layers))):
            weights, layer = self._layers[number], kept.pop()
            if isinstance(layer, Tensor):
                layer, _ = self._layer(number, weights, layer, None, row)
            self._mlp_backward(number, weights, grad, row, layer)
            self._attention_backward(number, weights, grad, row, layer)

    def _mlp_backward(self, number: int, w: LayerWeights, grad: Tensor, row: _Row, kept: _Kept) -> None:
        """Turn the gradient of the layer's output into that of its middle, in place."""
        columns, lora, first = self._columns, row.lora, number * len(MODULES)
        gd_down = lora.project(grad, first + _DOWN, columns.hidden_out, B_SIDE)
        act = grad @ w.down
        lora.swiglu_backward(kept.gate_up, kept.d_gate_up, act, gd_down, first + _GATE_UP)
        lora.outer(act, gd_down, first + _DOWN, columns.down_in, A_SIDE)
        lora.outer(grad, kept.d_down, first + _DOWN, columns.hidden_out, B_SIDE)
        gd = lora.project(kept.gate_up, first + _GATE_UP, columns.gate_up_out, B_SIDE)
        gx = kept.gate_up @ w.gate_up
        lora.add(gx, gd, first + _GATE_UP, 2, A_SIDE)
        lora.outer(kept.x2, gd, first + _GATE_UP, columns.gate_up_in, A_SIDE)
        lora.outer(kept.gate_up, kept.d_gate_up, first + _GATE_UP, columns.gate_up_out, B_SIDE)
        ops.norm_backward(gx, kept.h_mid, w.norm2, kept.rstd2, grad)

    def _attention_backward(self, number: int, w: LayerWeights, grad: Tensor, row: _Row, kept: _Kept) -> None:
        shape, columns, lora, first = self._shape, self._columns, row.lora, number * len(MODULES)
        gd_o = lora.project(grad, first + _O, columns.hidden_out, B_SIDE)
        g_attended = grad @ w.o
        lora.add(g_attended, gd_o, first + _O, 1, A_SIDE)
        lora.outer(kept.attended.out, gd_o, first + _O, columns.o_in, A_SIDE)
        lora.outer(grad, kept.d_o, first + _O, columns.hidden_out, B_SIDE)
        grads = self._attention.backward(g_attended, kept.attended, row.bounds)
        g_qkv = kept.qkv_base
        lora.heads_backward(g_qkv, kept.d_qkv, grads, first + _QKV, w, shape, row.cos, row.sin)
        gd = lora.project(g_qkv, first + _QKV, columns.qkv_out, B_SIDE)
        lora.outer(kept.x1, gd, first + _QKV, columns.qkv_in, A_SIDE)
        lora.outer(g_qkv, kept.d_qkv, first + _QKV, columns.qkv_out, B_SIDE)
        if number:  # the gradient by the embedding is nobody's
            gx = g_qkv @ w.qkv
            lora.add(gx, gd, first + _QKV, 3, A_SIDE)
            ops.norm_backward(gx, kept.h, w.norm1, kept.rstd1, grad)


class _LayerColumns:
    """Where each module's columns lie in the inputs and outputs of the fused matmuls."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        hidden, width = shape.hidden, shape.intermediate
        q, kv = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.qkv_in = Columns.of([(0, hidden)] * 3, device)
        self.qkv_out = Columns.of([(0, q), (q, kv), (q + kv, kv)], device)
        self.o_in = Columns.of([(0, q)], device)
        self.hidden_out = Columns.of([(0, hidden)], device)
        self.gate_up_in = Columns.of([(0, hidden)] * 2, device)
        self.gate_up_out = Columns.of([(0, width), (width, width)], device)
        self.down_in = Columns.of([(0, width)], device)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, decoder: FusedDecoder, h: Tensor, row: _Row) -> Tensor:
        kept: list[_Kept | Tensor] = []
        out, summed, rstd = decoder.forward(h, row, kept)
        ctx.decoder, ctx.row, ctx.kept, ctx.final = decoder, row, kept, (summed, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, ...]:
        decoder: FusedDecoder = ctx.decoder
        decoder.backward(grad_outputs[0].contiguous(), ctx.row, ctx.kept, *ctx.final)
        return None, None, None, None


def _attention_for(shape: Shape, device: torch.device, *, deterministic: bool) -> attention.Attention:
    """The fastest kernels that are installed. FlashAttention 4 adds gradients up in no fixed order."""
    if device.type != "cuda":
        return attention.Reference(shape)
    if not deterministic and Flash4.takes(shape, device):
        return Flash4(shape)
    return attention.Flash2(shape)
