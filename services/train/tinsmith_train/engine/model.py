"""Loading a Hugging Face causal language model as the frozen base of many adapters."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tinsmith_common.errors import EngineFailure
from tinsmith_train.engine.activations import steady_activations
from tinsmith_train.engine.adapters import Group, LoraTarget
from tinsmith_train.engine.attention import PACKED_ATTENTION, register_packed_attention
from tinsmith_train.engine.decoder import Decoder, ModuleDecoder
from tinsmith_train.engine.experts import LoraExperts
from tinsmith_train.engine.families import FAMILIES, Family, check_options, family_of, logit_map
from tinsmith_train.engine.fused import weights as fused_weights
from tinsmith_train.engine.logprobs import Head
from tinsmith_train.engine.lora import LoraLinear, SpanTable
from tinsmith_train.engine.types import ModelInfo
from tinsmith_train.engine.vision import Vision
from tinsmith_train.engine.whole import WholeModel

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class BaseModel:
    """A frozen model whose linear layers are ready to carry deltas.

    decoder: token ids and positions -> hidden states.
    vision:  what turns images into embeddings, of a model that takes any.
    whole:   what a full fine-tune copies.
    name:    what the model is called to users and in exported adapters.
    """

    name: str
    decoder: Decoder
    head: Head
    head_path: str
    targets: tuple[LoraTarget, ...]
    info: ModelInfo
    device: torch.device
    whole: WholeModel
    vision: Vision | None = None


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
        model, processor = _load(source or name, number_type)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineFailure(
            f"base model '{name}' could not be loaded from '{source or name}' ({reason}): check that it is a folder "
            "with config.json and safetensors weights, or a hub id that this host can reach or has cached"
        ) from error
    return prepare_base_model(name, model.to(place), processor)


def _load(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model, and its image processor where its family takes images."""
    family = FAMILIES.get(AutoConfig.from_pretrained(source).model_type)
    if family is None or not family.images:
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=PACKED_ATTENTION
        ), None
    # The tower attends as it was built; only the decoder's rows are packed.
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    return model, Qwen2VLImageProcessorPil.from_pretrained(source)


def prepare_base_model(name: str, model: Any, processor: Any = None) -> BaseModel:
    """Freeze a loaded language model and wrap its linear layers. The model is changed in place.

    Raises `EngineFailure` for architectures this engine would compute wrongly.
    """
    config = model.config.get_text_config()
    family = family_of(name, model.config.model_type)
    check_options(name, family, config)
    register_packed_attention()
    # By name, as a vision tower beside it keeps its own.
    model.get_submodule(family.decoder).set_attn_implementation(PACKED_ATTENTION)
    model.requires_grad_(False)
    model.eval()
    head, module = _head_of(name, model, family), cast(nn.Module, model.get_submodule(family.decoder))
    steady_activations(module)
    table = SpanTable()
    layers = _wrap_layers(name, module, family, table)
    targets = (*layers, LoraTarget(family.head, head.in_features, head.out_features, "unembed"))
    info = ModelInfo(
        architecture=type(model).__name__,
        vocab_size=head.out_features,
        max_context_length=int(config.max_position_embeddings),
        num_parameters=sum(p.numel() for p in model.parameters()),
    )
    logits = logit_map(family, config)
    whole = WholeModel(model, family.decoder, family.head, logits)
    frozen_head = Head(head.weight, head.bias, logits)
    decoder = _decoder(module, family.decoder, table, [target.path for target in layers])
    vision = Vision(model, processor, decoder) if processor and isinstance(decoder, ModuleDecoder) else None
    return BaseModel(
        name, decoder, frozen_head, family.head, targets, info, head.weight.device, whole, vision
    )


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


def _head_of(name: str, model: Any, family: Family) -> nn.Linear:
    head = getattr(model, family.head, None)
    if not isinstance(head, nn.Linear):
        raise EngineFailure(f"base model '{name}' has no linear output head: use a causal language model")
    return head


def _wrap_layers(name: str, decoder: nn.Module, family: Family, spans: SpanTable) -> list[LoraTarget]:
    """Let the layers' linear modules carry deltas, in the order in which they run."""
    targets: list[LoraTarget] = []
    for number, layer in enumerate(cast(nn.ModuleList, decoder.layers)):
        prefix = f"layers.{number}"
        present = {path for path, _ in layer.named_modules()}
        before = len(targets)
        groups: dict[Group, tuple[str, ...]] = {"attn": family.attn, "mlp": family.mlp}
        for group, paths in groups.items():
            targets.extend(
                _wrap_linear(decoder, f"{prefix}.{path}", family, group, spans)
                for path in paths
                if path in present
            )
        if family.experts in present:
            targets.extend(_wrap_experts(decoder, f"{prefix}.{family.experts}", family, spans))
        if len({target.group for target in targets[before:]}) != 2:
            raise EngineFailure(
                f"base model '{name}': layer {number} is not built like other models of type '{family.model_type}' "
                "(attention or feed-forward not found): use transformers of the version this server is locked to"
            )
    return targets


def _wrap_linear(decoder: nn.Module, path: str, family: Family, group: Group, spans: SpanTable) -> LoraTarget:
    linear = cast(nn.Linear, decoder.get_submodule(path))
    full = f"{family.decoder}.{path}"
    decoder.set_submodule(path, LoraLinear(linear, full, spans))
    return LoraTarget(full, linear.in_features, linear.out_features, group)


def _wrap_experts(decoder: nn.Module, path: str, family: Family, spans: SpanTable) -> tuple[LoraTarget, ...]:
    experts = LoraExperts(decoder.get_submodule(path), f"{family.decoder}.{path}", spans)
    decoder.set_submodule(path, experts)
    return experts.targets
