"""The frozen weights of a decoder, as the fused layers read them, and which models have such weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tinsmith_train.engine.lora import LoraLinear

SIZE_STEP = 32
"""Widths must be multiples of this, so that every block of a kernel is full."""

MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
"""The linear layers of one decoder layer, in the order of the kernels' tables."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer."""

    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: float

    @property
    def heads(self) -> int:
        """Heads of the fused query, key and value projection."""
        return self.q_heads + 2 * self.kv_heads


@dataclass(frozen=True)
class LayerWeights:
    """One layer. `qkv` is `[heads * head_dim, hidden]`, `gate_up` `[2 * intermediate, hidden]`."""

    norm1: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


def shape_of(decoder: nn.Module) -> Shape | None:
    """The sizes of a decoder that the fused layers compute exactly, or None for any other.

    Taken are pre-norm layers of RMS norm, rotary grouped-query attention over the whole context (with or without head
    norms and query-key-value biases) and SwiGLU: Llama, Mistral, Qwen2 and Qwen3 as Hugging Face builds them.
    """
    config: Any = decoder.config
    layers: Any = getattr(decoder, "layers", None)
    if layers is None or type(decoder).__name__ not in FAMILIES:
        return None
    attention = layers[0].self_attn
    head_dim = int(attention.head_dim)
    shape = Shape(
        hidden=int(config.hidden_size),
        intermediate=int(config.intermediate_size),
        q_heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        head_dim=head_dim,
        eps=float(config.rms_norm_eps),
        scaling=float(attention.scaling),
    )
    widths = (shape.hidden, shape.intermediate, head_dim)
    plain = (
        config.hidden_act == "silu"
        and all(width % SIZE_STEP == 0 for width in widths)
        and head_dim & (head_dim - 1) == 0
        and not _slides(config)
        and not any(_has_bias(layer, path) for layer in layers for path in MODULES[3:])
    )
    return shape if plain else None


def _slides(config: Any) -> bool:
    """Whether some layer attends to a window only."""
    if getattr(config, "layer_types", None) is not None:
        return any(kind != "full_attention" for kind in config.layer_types)
    return getattr(config, "sliding_window", None) is not None


FAMILIES = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
"""Decoders whose layers are the ones of `shape_of`; a new one needs its class here and a row in the tests."""


def base_of(layer: nn.Module, path: str) -> nn.Linear:
    """The frozen linear layer at `path`, without its wrapper."""
    module = layer.get_submodule(path)
    return module.base if isinstance(module, LoraLinear) else module  # pyright: ignore[reportReturnType]


def _has_bias(layer: nn.Module, path: str) -> bool:
    linear: Any = base_of(layer, path)
    return linear.bias is not None


@torch.no_grad()
def layer_weights(layer: Any) -> LayerWeights:
    """Fuse what is multiplied by the same rows. The layer's own parameters become views, so nothing is kept twice."""
    attention = layer.self_attn
    q, k, v, o, gate, up, down = (base_of(layer, path) for path in MODULES)
    biases: list[Any] = [linear.bias for linear in (q, k, v)]
    return LayerWeights(
        norm1=layer.input_layernorm.weight,
        qkv=_fuse(q, k, v),
        qkv_bias=None if biases[0] is None else torch.cat(biases),
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        o=o.weight,
        norm2=layer.post_attention_layernorm.weight,
        gate_up=_fuse(gate, up),
        down=down.weight,
    )


def _fuse(*linears: nn.Linear) -> Tensor:
    whole = torch.cat([linear.weight for linear in linears])
    for linear, part in zip(linears, whole.split([x.out_features for x in linears]), strict=True):
        linear.weight.data = part
    return whole
