"""Models and training operations that travel as JSON (spec section 3.3)."""

from typing import Any, Literal

from pydantic import Field

from tinsmith_common.wire.base import Metadata, WireModel

MAX_SEQ_ID = 2**31 - 1


class LoraConfig(WireModel):
    """Shape of the adapter. Rank 0 is no adapter: all weights train."""

    rank: int = Field(default=32, ge=0)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(WireModel):
    """Which optimizer family a model uses. Open-ended: match on `type`."""

    type: str = "adamw"


class ModelAddress(WireModel):
    """The natural key of what creates a model."""

    session_id: str = Field(min_length=1)
    model_seq_id: int = Field(ge=0, le=MAX_SEQ_ID)


class CreateModelRequest(ModelAddress):
    """Creates a model with a fresh adapter."""

    base_model: str
    lora_config: LoraConfig = LoraConfig()
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: Metadata | None = None


class CreateModelResult(WireModel):
    """Result of the future."""

    model_id: str
    type: Literal["create_model"] = "create_model"


class GetInfoRequest(WireModel):
    """Asks about one model."""

    model_id: str


class ModelData(WireModel):
    """Names that clients derive the tokenizer from; `tokenizer_id` may be a local folder."""

    arch: str | None = None
    model_name: str
    tokenizer_id: str | None = None


class GetInfoResponse(WireModel):
    """One model."""

    model_id: str
    model_data: ModelData
    is_lora: bool = True
    lora_rank: int | None
    model_name: str
    optimizer_config: OptimizerConfig = OptimizerConfig()
    type: Literal["get_info"] = "get_info"


class OperationAddress(WireModel):
    """The natural key of every ordered operation of a model."""

    model_id: str = Field(min_length=1)
    seq_id: int = Field(ge=0, le=MAX_SEQ_ID)


class AdamParams(WireModel):
    """AdamW parameters of one step; `grad_clip_norm` 0 is off."""

    learning_rate: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-12, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    grad_clip_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class OptimStepRequest(OperationAddress):
    """One optimizer step."""

    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class OptimStepResult(WireModel):
    """Result of the future."""

    metrics: dict[str, float]
    type: Literal["optim_step"] = "optim_step"
