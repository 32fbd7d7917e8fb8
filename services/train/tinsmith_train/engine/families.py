"""The architectures this engine trains, one row each. What a row does not say, Hugging Face's own modules do.

Norms, rotary embeddings, scaled embeddings, head norms, windows of attention and the choice of experts run in the
model's code. A row says which of its linear layers carry deltas, and what becomes of the logits after the head,
which the engine computes itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinsmith_common.errors import EngineFailure


@dataclass(frozen=True)
class Family:
    """How one `model_type` of Hugging Face is built.

    decoder, head:  paths in the causal language model; the decoder's layers are in its list `layers`.
    attn, mlp:      paths in a layer of the linear layers behind `train_attn` and `train_mlp`. A layer may lack some.
    experts:        path in a layer of the module whose `gate_up_proj` `[experts, 2 width, hidden]` and `down_proj`
                    `[experts, hidden, width]` are stacked experts, which belong to `mlp`.
    frozen:         linear layers that no adapter trains.
    logit_factor, logit_divisor, logit_softcap: options of the configuration: logits are multiplied, divided by them,
                    and `cap * tanh(logits / cap)`.
    images:         whether images can stand among the tokens (see `vision`).
    refused:        options that change the result in a way the engine would not follow, and their harmless value.
    """

    model_type: str
    decoder: str = "model"
    head: str = "lm_head"
    attn: tuple[str, ...] = tuple(f"self_attn.{side}_proj" for side in "qkvo")
    mlp: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    experts: str | None = None
    frozen: tuple[str, ...] = ()
    logit_factor: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
    images: bool = False
    refused: Mapping[str, Any] | None = None


_FUSED_GATE = ("mlp.gate_up_proj", "mlp.down_proj")
_NO_GATE = ("mlp.up_proj", "mlp.down_proj")
_CAUSAL = {"use_bidirectional_attention": None}
_SHARED_EXPERT = tuple(f"mlp.shared_expert.{side}_proj" for side in ("gate", "up", "down"))

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("arcee", mlp=_NO_GATE),
        Family("cohere", logit_factor="logit_scale"),
        Family("cohere2", logit_factor="logit_scale"),
        Family("exaone4"),
        Family("gemma"),
        Family("gemma2", logit_softcap="final_logit_softcapping"),
        Family("gemma3_text", logit_softcap="final_logit_softcapping", refused=_CAUSAL),
        Family("glm", mlp=_FUSED_GATE),
        Family("glm4", mlp=_FUSED_GATE),
        Family("granite", logit_divisor="logits_scaling"),
        Family("helium"),
        Family("llama"),
        Family("ministral"),
        Family("mistral"),
        Family("mixtral", experts="mlp.experts"),
        Family("olmo2"),
        Family("olmo3"),
        Family("olmoe", experts="mlp.experts"),
        Family("phi3", attn=("self_attn.qkv_proj", "self_attn.o_proj"), mlp=_FUSED_GATE),
        Family("qwen2"),
        Family("qwen2_5_vl", decoder="model.language_model", images=True),
        Family(
            "qwen2_moe",
            mlp=(*Family("").mlp, *_SHARED_EXPERT),
            experts="mlp.experts",
            frozen=("mlp.shared_expert_gate",),
        ),
        Family("qwen3"),
        Family("qwen3_moe", experts="mlp.experts"),
        Family("seed_oss"),
        Family("smollm3"),
        Family("starcoder2", mlp=("mlp.c_fc", "mlp.c_proj")),
    )
}
"""Each row is held to Hugging Face and PEFT by the tests, on a small random model."""

_VARYING_ROPE = ("dynamic", "longrope")
"""Rotary embeddings that change with the longest sequence of a batch, so that a datum's result would too."""


@dataclass(frozen=True)
class LogitMap:
    """`softcap * tanh(scale * logits / softcap)`, or `scale * logits` where there is no cap."""

    scale: float = 1.0
    softcap: float | None = None


def family_of(name: str, model_type: str) -> Family:
    """The row of a base model. Raises `EngineFailure` with what is supported."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise EngineFailure(
            f"base model '{name}' has the architecture '{model_type}', which the embedded engine does not train: "
            f"use one of {', '.join(FAMILIES)}"
        )
    return family


def check_options(name: str, family: Family, config: Any) -> None:
    """Raise `EngineFailure` where the configuration asks for what the engine would compute wrongly."""
    for option, harmless in (family.refused or {}).items():
        if getattr(config, option, harmless) not in (harmless, None, False):
            raise EngineFailure(
                f"base model '{name}' sets '{option}', which the embedded engine does not apply"
            )
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [
        rope.get("rope_type"),
        *(part.get("rope_type") for part in rope.values() if isinstance(part, dict)),
    ]
    varying = [kind for kind in kinds if kind in _VARYING_ROPE]
    if varying:
        raise EngineFailure(
            f"base model '{name}' uses '{varying[0]}' rotary embeddings, which change with the length of a batch: the "
            "embedded engine packs sequences and needs fixed ones (default, linear, yarn, llama3)"
        )


def logit_map(family: Family, config: Any) -> LogitMap:
    """What this model does to its logits."""
    factor = _option(config, family.logit_factor) or 1.0
    divisor = _option(config, family.logit_divisor) or 1.0
    return LogitMap(factor / divisor, _option(config, family.logit_softcap))


def _option(config: Any, name: str | None) -> float | None:
    value = getattr(config, name, None) if name else None
    return None if value is None else float(value)
