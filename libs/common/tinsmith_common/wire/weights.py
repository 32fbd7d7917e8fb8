"""Saving and loading (spec section 3.4)."""

from typing import Literal

from pydantic import AwareDatetime, Field

from tinsmith_common.wire.base import Metadata, WireModel
from tinsmith_common.wire.training import MAX_SEQ_ID, OperationAddress, OptimizerConfig

TTL_MIN_S = 3600
TTL_MAX_S = 10 * 366 * 24 * 3600


class SaveWeightsRequest(OperationAddress):
    """Saves weights and optimizer state under a name."""

    path: str
    ttl_seconds: int | None = Field(default=None, ge=TTL_MIN_S, le=TTL_MAX_S)
    overwrite: bool = False
    user_metadata: Metadata | None = None


class SaveWeightsResult(WireModel):
    """Result of the future."""

    path: str
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsForSamplerRequest(OperationAddress):
    """Saves weights for sampling: under a name, or for a new sampling session."""

    kind: Literal["snapshot", "inflight"] = "snapshot"
    path: str | None = None
    sampling_session_seq_id: int | None = Field(default=None, ge=0)
    ttl_seconds: int | None = Field(default=None, ge=TTL_MIN_S, le=TTL_MAX_S)
    user_metadata: Metadata | None = None


class SaveWeightsForSamplerResult(WireModel):
    """Result of the future: `path` for a name, `sampling_session_id` otherwise."""

    path: str | None = None
    sampling_session_id: str | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveWeightsExternalRequest(OperationAddress):
    """Saves weights for download. Each recipient is an `age1…` or SSH public key that can decrypt them."""

    path: str
    ttl_seconds: int | None = Field(default=None, ge=TTL_MIN_S, le=TTL_MAX_S)
    age_encryption_recipients: list[str] | None = Field(default=None, max_length=10)


class SaveWeightsExternalResult(WireModel):
    """Result of the future. `size_bytes` is what a download of all files fetches."""

    path: str
    size_bytes: int
    type: Literal["save_weights_external"] = "save_weights_external"


class ExternalWeightsUrlsResponse(WireModel):
    """A download URL for each file, good without any header until `expires`."""

    urls: dict[str, str]
    expires: AwareDatetime


class LoadWeightsRequest(WireModel):
    """Loads a checkpoint: into a new model (session address) or an existing one (model address)."""

    session_id: str | None = None
    model_seq_id: int | None = Field(default=None, ge=0, le=MAX_SEQ_ID)
    model_id: str | None = None
    seq_id: int | None = Field(default=None, ge=0, le=MAX_SEQ_ID)
    path: str
    optimizer: bool = False
    base_model: str | None = None
    optimizer_config: OptimizerConfig | None = None
    user_metadata: Metadata | None = None
    weights_access_token: str | None = None


class LoadWeightsResult(WireModel):
    """Result of the future."""

    path: str
    model_id: str
    type: Literal["load_weights"] = "load_weights"


class CopyWeightsRequest(WireModel):
    """Copies a checkpoint into a new run: of a session, or of a project."""

    source_path: str
    destination_project_id: str | None = None
    session_id: str | None = None
    model_seq_id: int | None = Field(default=None, ge=0, le=MAX_SEQ_ID)
    ttl_seconds: int | None = Field(default=None, ge=TTL_MIN_S, le=TTL_MAX_S)


class CopyWeightsResponse(WireModel):
    """Where the copy is."""

    tinker_path: str


class WeightsInfoRequest(WireModel):
    """Asks what a checkpoint holds."""

    tinker_path: str


class WeightsInfoResponse(WireModel):
    """What a checkpoint holds."""

    base_model: str
    is_lora: bool = True
    lora_rank: int | None
    train_unembed: bool
    train_mlp: bool
    train_attn: bool
    optimizer_config: OptimizerConfig = OptimizerConfig()
