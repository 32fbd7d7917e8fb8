"""What goes into the training engine and what comes out. Plain arrays, no wire format, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinsmith_train.engine.custom_loss.graph import LossGraph

LossConfig = Mapping[str, float | str]
"""Options of a loss by name, e.g. `{"clip_low_threshold": 0.8}`."""


@dataclass(frozen=True)
class LoraSpec:
    """Shape of one adapter.

    `seed` initialises the A matrices; B starts at zero. The delta of a linear layer is
    `alpha / rank * B @ A`.
    """

    rank: int
    alpha: float = 32.0
    seed: int | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


@dataclass(frozen=True)
class Datum:
    """One training sequence.

    tokens:  int64 `[N]`, the model input.
    targets: int64 `[N]` or `[N, K]`; row i holds the token(s) predicted after input position i.
    inputs:  the other loss inputs by name. Named losses read them as float32, shaped like `targets`; a custom
             loss takes them as they are, of rank 0 to 2.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    inputs: Mapping[str, NDArray[np.float32] | NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class ForwardBackward:
    """One forward (and backward) pass over the datums of one adapter.

    graph:       the loss named 'custom'.
    elementwise: whether the result tells what each position adds to the loss.
    """

    adapter_id: str
    datums: tuple[Datum, ...]
    loss: str
    loss_config: LossConfig = field(default_factory=dict)
    forward_only: bool = False
    graph: LossGraph | None = None
    elementwise: bool = False


@dataclass(frozen=True)
class ForwardBackwardResult:
    """`logprobs[i]` is float32, shaped like the targets of datum i. `metrics` keys are `name:reduction`.

    `elementwise_loss`, shaped like `logprobs`, is empty unless it was asked for and the loss has such terms.
    """

    logprobs: tuple[NDArray[np.float32], ...]
    metrics: Mapping[str, float]
    elementwise_loss: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class AdamParams:
    """AdamW parameters of one step. `grad_clip_norm` bounds the global L2 norm; 0 switches it off."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a loaded base model that validation and `get_info` need."""

    architecture: str
    vocab_size: int
    max_context_length: int
    num_parameters: int


@dataclass(frozen=True)
class TrainerLimits:
    """Memory of a pass.

    tokens_per_pass:  tokens in one packed row; a longer sequence gets a row of its own. None: 8192, and on a GPU up to
                      32768 where the activations of so many take at most 32 GiB.
    tokens_per_piece: on a CPU, tokens of a submission that are one span and one loss (`packing.Pieces`).
    logits_chunk_mib: fp32 logits computed at a time; None: 64 on a CPU, 2048 on a GPU, which wants large matmuls.
    logits_keep_mib:  log-softmax kept for the backward pass, which is computed again when it would be larger.
    """

    tokens_per_pass: int | None = None
    tokens_per_piece: int = 1024
    logits_chunk_mib: int | None = None
    logits_keep_mib: int = 1024
