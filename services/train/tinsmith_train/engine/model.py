"""Loading a Hugging Face causal language model as the frozen base of many adapters."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tinsmith_common.errors import EngineFailure
from tinsmith_train.engine.activations import steady_activations
from tinsmith_train.engine.adapters import Group, LoraTarget
from tinsmith_train.engine.attention import PACKED_ATTENTION, register_packed_attention
from tinsmith_train.engine.decoder import Decoder, ModuleDecoder
from tinsmith_train.engine.fused import weights as fused_weights
from tinsmith_train.engine.logprobs import Head
from tinsmith_train.engine.lora import LoraLinear, SpanTable
from tinsmith_train.engine.types import ModelInfo

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16"]

_LOGIT_CHANGES = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
"""Options with which a model changes logits after the projection, and the value that leaves them alone."""


@dataclass(frozen=True)
class BaseModel:
    """A frozen model whose linear layers are ready to carry deltas.

    decoder: token ids and positions -> hidden states.
    name:    what the model is called to users and in exported adapters.
    """

    name: str
    decoder: Decoder
    head: Head
    head_path: str
    targets: tuple[LoraTarget, ...]
    info: ModelInfo
    device: torch.device


def load_base_model(
    name: str, source: str | None = None, device: Device = "auto", dtype: DType = "auto"
) -> BaseModel:
    """Load `source` (a folder or a hub id; `name` if not given) onto the device.

    `auto` is CUDA with bfloat16 when there is a GPU, else the CPU with float32. Raises `EngineFailure` with what
    to change.
    """
    place = _device(device)
    number_type = _dtype(dtype, place)
    register_packed_attention()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source or name, dtype=number_type, attn_implementation=PACKED_ATTENTION
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineFailure(
            f"base model '{name}' could not be loaded from '{source or name}' ({reason}): check that it is a folder "
            "with config.json and safetensors weights, or a hub id that this host can reach or has cached"
        ) from error
    return prepare_base_model(name, model.to(place))


def prepare_base_model(name: str, model: Any) -> BaseModel:
    """Freeze a loaded causal LM and wrap its linear layers. The model is changed in place.

    Raises `EngineFailure` for architectures this engine would compute wrongly.
    """
    config = model.config.get_text_config()
    _refuse_unsupported(name, model, config)
    register_packed_attention()
    model.set_attn_implementation(PACKED_ATTENTION)
    model.requires_grad_(False)
    model.eval()
    head = cast(nn.Linear, model.get_output_embeddings())
    module = cast(nn.Module, model.get_decoder())
    prefix = _path_of(model, module)
    head_path = _path_of(model, head)
    steady_activations(module)
    table = SpanTable()
    linears = _wrap_linears(module, prefix, table)
    targets = (
        *linears,
        LoraTarget(head_path, head.in_features, head.out_features, "unembed"),
    )
    info = ModelInfo(
        architecture=type(model).__name__,
        vocab_size=head.out_features,
        max_context_length=int(config.max_position_embeddings),
        num_parameters=sum(p.numel() for p in model.parameters()),
    )
    frozen_head = Head(head.weight, head.bias)
    decoder = _decoder(module, prefix, table, [target.path for target in linears])
    return BaseModel(name, decoder, frozen_head, head_path, targets, info, head.weight.device)


def _decoder(module: nn.Module, prefix: str, table: SpanTable, paths: list[str]) -> Decoder:
    """The fused layers where they can run, else the model's own modules."""
    weight = next(module.parameters())
    shape = fused_weights.shape_of(module) if weight.is_cuda and weight.dtype == torch.bfloat16 else None
    if shape is None:
        return ModuleDecoder(module, table, paths)
    from tinsmith_train.engine.fused.decoder import (
        FusedDecoder,
    )  # needs Triton, which CPU builds come without

    return FusedDecoder(module, prefix, shape)


def _device(device: Device) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineFailure("device is 'cuda' and torch sees no GPU: set it to 'cpu' or install a CUDA build")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _dtype(dtype: DType, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def _refuse_unsupported(name: str, model: Any, config: Any) -> None:
    for option, harmless in _LOGIT_CHANGES.items():
        if getattr(config, option, harmless) not in (harmless, None):
            raise EngineFailure(
                f"base model '{name}' sets '{option}', which the embedded engine does not apply"
            )
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise EngineFailure(f"base model '{name}' has no linear output head: use a causal language model")
    stacked = [path for path, p in model.named_parameters() if p.dim() == 3 and "expert" in path]
    if stacked:
        raise EngineFailure(
            f"base model '{name}' is a mixture of experts ({stacked[0]}): the embedded engine trains dense models"
        )


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


def _wrap_linears(decoder: nn.Module, prefix: str, spans: SpanTable) -> list[LoraTarget]:
    targets: list[LoraTarget] = []
    for path, module in list(decoder.named_modules()):
        group = _group(path)
        if group is None or not isinstance(module, nn.Linear):
            continue
        full = f"{prefix}.{path}" if prefix else path
        decoder.set_submodule(path, LoraLinear(module, full, spans))
        targets.append(LoraTarget(full, module.in_features, module.out_features, group))
    return targets


def _group(path: str) -> Group | None:
    """Which switch of an adapter a layer obeys, from the names models give their blocks."""
    for part in path.split("."):
        if "attn" in part or "attention" in part:
            return "attn"
        if part in ("mlp", "feed_forward", "ffn"):
            return "mlp"
    return None
