"""Checks of what a client sent, before any of it reaches the model.

Every message names the datum, the field, what is wrong and what to change. What passes is complete: inputs
that may be left out are filled in, so the losses read every input they know.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.custom_loss.loss import custom_loss
from tinsmith_train.engine.losses import CLIP_INPUTS, LOSSES, Loss
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, LoraSpec, LossConfig, ModelInfo

if TYPE_CHECKING:  # it imports torch, which the service that checks names does without
    from tinsmith_train.engine.vision import SeenImage, Vision

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class _SeenDatum:
    """A datum whose images are looked at, and have their placeholder among the tokens."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    inputs: Mapping[str, NDArray[np.float32] | NDArray[np.int64]]
    seen: tuple["SeenImage", ...] = ()


@dataclass(frozen=True)
class CheckedDatum:
    """A datum that can be run. `targets` and every input of the loss are `[N]` or `[N, K]`, all alike."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    inputs: Mapping[str, FloatArray]
    images: tuple["SeenImage", ...] = ()


@dataclass(frozen=True)
class CheckedItem:
    """A submission that can be run, or a part of one, whose datums begin at the place `first` of the submission."""

    adapter_id: str
    datums: tuple[CheckedDatum, ...]
    loss: Loss
    config: Mapping[str, float]
    forward_only: bool
    elementwise: bool = False
    first: int = 0

    def part(self, first: int, last: int) -> "CheckedItem":
        """Its datums `[first, last)`."""
        return replace(self, datums=self.datums[first:last], first=self.first + first)


def check_item(item: ForwardBackward, model: ModelInfo, vision: "Vision | None" = None) -> CheckedItem:
    """Check a submission against the loss it names and the model. Raises `InvalidInput`."""
    loss = custom_loss(item.graph, item.datums) if item.graph else LOSSES.get(item.loss)
    if loss is None:
        raise InvalidInput(f"unknown loss '{item.loss}': use one of {', '.join(LOSSES)}")
    config = _check_config(item.loss, loss, item.loss_config)
    if not item.datums:
        raise InvalidInput("the batch is empty: send at least one datum")
    datums = tuple(
        _check_datum(f"datum {index}", _seen(f"datum {index}", datum, vision), item.loss, loss, config, model)
        for index, datum in enumerate(item.datums)
    )
    return CheckedItem(item.adapter_id, datums, loss, config, item.forward_only, item.elementwise)


def check_adam(params: AdamParams) -> None:
    """Check the parameters of one optimizer step. Raises `InvalidInput`."""
    for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
        value = getattr(params, name)
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInput(f"{name} is {value}: it must be a finite number, 0 or more")
    for name in ("beta1", "beta2"):
        value = getattr(params, name)
        if not 0 <= value < 1:
            raise InvalidInput(f"{name} is {value}: it must be at least 0 and less than 1")
    if not (math.isfinite(params.eps) and params.eps > 0):
        raise InvalidInput(f"eps is {params.eps}: it must be a finite number over 0")


def check_lora(spec: LoraSpec) -> None:
    """Check an adapter's shape. Raises `InvalidInput`."""
    if spec.rank < 0:
        raise InvalidInput(f"LoRA rank is {spec.rank}: it must be at least 1, or 0 to train all weights")
    if not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise InvalidInput(f"LoRA alpha is {spec.alpha}: it must be a finite number over 0")
    if not (spec.train_attn or spec.train_mlp or spec.train_unembed):
        raise InvalidInput("nothing to train: switch on train_attn, train_mlp or train_unembed")


def check_full(others: int, limit: int, memory_gib: float) -> None:
    """Check that one more model may train all its weights. Raises `InvalidInput` that names the setting."""
    if others < limit:
        return
    state = "off here" if limit == 0 else f"taken by {others} other model{'s' * (others > 1)}"
    raise InvalidInput(
        f"training all weights (rank 0) is {state}: use a LoRA rank of at least 1, or have FULL_FINE_TUNE_MODELS "
        f"raised over {limit}; each such model of this base takes {memory_gib:.1f} GiB"
    )


def _check_config(name: str, loss: Loss, given: LossConfig) -> Mapping[str, float]:
    config = dict(loss.defaults)
    for key, value in given.items():
        if key not in config:
            known = ", ".join(config) or "none"
            raise InvalidInput(f"loss_fn_config has the unknown key '{key}': {name} takes {known}")
        if isinstance(value, str) or not math.isfinite(value):
            raise InvalidInput(f"loss_fn_config['{key}'] is {value!r}: it must be a finite number")
        config[key] = float(value)
    if "clip_low_threshold" in config and config["clip_low_threshold"] > config["clip_high_threshold"]:
        raise InvalidInput("loss_fn_config: clip_low_threshold must not be over clip_high_threshold")
    for key in ("beta", "kl_coeff"):
        if config.get(key, 0.0) < 0:
            raise InvalidInput(f"loss_fn_config['{key}'] is {config[key]}: it must be 0 or more")
    return config


def _check_datum(
    where: str, datum: _SeenDatum, name: str, loss: Loss, config: Mapping[str, float], model: ModelInfo
) -> CheckedDatum:
    n = len(datum.tokens)
    if datum.tokens.ndim != 1 or n == 0:
        raise InvalidInput(f"{where}: model_input must hold at least one token")
    if n > model.max_context_length:
        raise InvalidInput(
            f"{where}: model_input has {n} tokens and the model's context is {model.max_context_length}: "
            "shorten the sequence"
        )
    _check_ids(f"{where}: model_input", datum.tokens, model.vocab_size)
    _check_target_shape(where, datum, name, loss)
    _check_ids(f"{where}: target_tokens", datum.targets, model.vocab_size)
    missing = [key for key in loss.required if key not in datum.inputs]
    if missing:
        raise InvalidInput(f"{where}: {name} needs the input '{missing[0]}' in loss_fn_inputs")
    inputs = {
        key: _check_input(f"{where}: {key}", datum.inputs[key], datum.targets.shape)
        for key in (*loss.required, *loss.optional)
        if key in datum.inputs
    }
    inputs.update(_fill(loss, inputs, config, datum.targets.shape))
    if CLIP_INPUTS[0] in inputs and np.any(inputs[CLIP_INPUTS[0]] > inputs[CLIP_INPUTS[1]]):
        raise InvalidInput(f"{where}: clip_low_threshold is over clip_high_threshold at some position")
    return CheckedDatum(datum.tokens, datum.targets, inputs, datum.seen)


def _seen(where: str, datum: Datum, vision: "Vision | None") -> "_SeenDatum":
    if not datum.images:
        return _SeenDatum(datum.tokens, datum.targets, datum.inputs)
    if vision is None:
        raise InvalidInput(
            f"{where}: model input of kind image is not supported by this model: send tokens, or train a "
            "vision-language model"
        )
    images = tuple(vision.see(where, image) for image in datum.images)
    return _SeenDatum(vision.placed(datum.tokens, images), datum.targets, datum.inputs, images)


def _check_target_shape(where: str, datum: _SeenDatum, name: str, loss: Loss) -> None:
    n, shape = len(datum.tokens), datum.targets.shape
    allowed = len(shape) == 1 or (len(shape) == 2 and loss.soft_targets and shape[1] > 0)
    if allowed and shape[0] == n:
        return
    expected = f"[{n}] or [{n}, K]" if loss.soft_targets else f"[{n}]"
    raise InvalidInput(
        f"{where}: target_tokens has shape {list(shape)}, and {name} needs {expected}: one row for each token of "
        "model_input"
    )


def _check_ids(where: str, ids: NDArray[np.int64], vocab_size: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise InvalidInput(
            f"{where} holds the token id {bad}: this model's vocabulary is 0 to {vocab_size - 1}"
        )


def _check_input(where: str, values: NDArray[Any], shape: tuple[int, ...]) -> FloatArray:
    if values.shape != shape:
        raise InvalidInput(
            f"{where} has shape {list(values.shape)}: it must have the shape of target_tokens, {list(shape)}"
        )
    if not np.isfinite(values).all():
        position = np.argwhere(~np.isfinite(values))[0].tolist()
        raise InvalidInput(
            f"{where} is not finite at position {position}: replace NaN and infinity by numbers"
        )
    return values.astype(np.float32, copy=False)


def _fill(
    loss: Loss, given: Mapping[str, FloatArray], config: Mapping[str, float], shape: tuple[int, ...]
) -> dict[str, FloatArray]:
    """Values for the optional inputs that were left out."""
    filled: dict[str, FloatArray] = {}
    for key in loss.optional:
        if key in given:
            continue
        if key == "sequence_ratio_mask":
            filled[key] = (given["advantages"] != 0).astype(np.float32)
        else:
            filled[key] = np.full(shape, config.get(key, 1.0), dtype=np.float32)
    return filled
