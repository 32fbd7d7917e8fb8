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

    `rank` 0 trains all weights; seed and alpha mean nothing then. `seed` initialises the A matrices; B starts at
    zero. The delta of a linear layer is `alpha / rank * B @ A`.
    """

    rank: int
    alpha: float = 32.0
    seed: int | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


@dataclass(frozen=True)
class Image:
    """An image in place of the tokens `[start, start + tokens)` of a datum. `data` is a file of `format`."""

    start: int
    tokens: int
    data: bytes
    format: str


@dataclass(frozen=True)
class Datum:
    """One training sequence.

    tokens:  int64 `[N]`, the model input.
    targets: int64 `[N]` or `[N, K]`; row i holds the token(s) predicted after input position i.
    images:  what some of the tokens, whose ids mean nothing then, stand for.
    inputs:  the other loss inputs by name. Named losses read them as float32, shaped like `targets`; a custom
             loss takes them as they are, of rank 0 to 2.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    inputs: Mapping[str, NDArray[np.float32] | NDArray[np.int64]] = field(default_factory=dict)
    images: tuple[Image, ...] = ()


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
class PassPart:
    """Datums `[first, last)` of a pass, which runs part by part in their order.

    The part that begins at datum 0 brings the whole pass as `item`, so that all of it is checked before any of it
    runs; the others leave it out. `tokens` is the length of the part.
    """

    pass_id: str
    first: int
    last: int
    tokens: int
    item: ForwardBackward | None = None

    @classmethod
    def whole(cls, pass_id: str, item: ForwardBackward) -> "PassPart":
        """A pass that runs in one go."""
        tokens = sum(datum.tokens.size for datum in item.datums)
        return cls(pass_id, 0, len(item.datums), tokens, item)


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
    """Facts of a loaded base model that validation, `get_info` and the scheduler need.

    row_tokens: how many tokens the engine runs at a time; 0 where there is no such bound.
    """

    architecture: str
    vocab_size: int
    max_context_length: int
    num_parameters: int
    row_tokens: int = 0


@dataclass(frozen=True)
class TrainerLimits:
    """Memory of a pass.

    tokens_per_pass:  tokens in one packed row; a longer sequence gets a row of its own. None: 1024 on a CPU, where more
                      only makes others wait; on a GPU 8192, up to 32768 where the activations of so many take at
                      most 32 GiB.
    tokens_per_piece: on a CPU, tokens of a submission that are one span and one loss (`packing.Pieces`).
    logits_chunk_mib: fp32 logits computed at a time; None: 64 on a CPU, 2048 on a GPU, which wants large matmuls.
    full_models:      how many models may train all their weights at a time, at 16 bytes a parameter.
    logits_keep_mib:  log-softmax kept for the backward pass, which is computed again when it would be larger.
    """

    tokens_per_pass: int | None = None
    tokens_per_piece: int = 1024
    logits_chunk_mib: int | None = None
    logits_keep_mib: int = 1024
    full_models: int = 0
