"""Bootstrap, capabilities, telemetry (spec section 3.1)."""

from typing import Any, Literal

from pydantic import Field

from tinsmith_common.wire.base import WireModel


class ClientConfigRequest(WireModel):
    """Asked first by every client."""

    sdk_version: str = ""


class ClientConfigResponse(WireModel):
    """Switches for the client; what is not named here keeps the SDK's default."""

    pjwt_auth_enabled: bool = False
    credential_default_source: str = "api_key"
    custom_loss_server_side: bool = True
    sample_use_retrieve_futures: bool = False
    sample_join_sampling_session: bool = False
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: int = 1024
    fwdbwd_max_chunk_bytes_count: int = 5_000_000
    fwdbwd_dispatch_bytes_semaphore_size: int = 50_000_000
    proto_write_fwdbwd: bool = True
    """This and the two below make SDKs before 0.38 that can do so act as 0.38 does."""
    fwd_via_fwdbwd: bool = True
    create_model_via_load_weights: bool = True


class ClientDynamicConfigResponse(WireModel):
    """Switches the client asks for again and again."""

    refresh_interval_sec: int = 300
    sample_cancel_enabled: bool = False


class SupportedModelInfo(WireModel):
    """One served base model. `max_context_length` in tokens."""

    model_name: str
    max_context_length: int | None = None
    trainable: bool = True
    sampleable: bool = True


class ServerCapabilities(WireModel):
    """What this server serves."""

    supported_models: list[SupportedModelInfo]


class TelemetryRequest(WireModel):
    """A batch of client events. Only figures that the client reports of its runs are kept."""

    events: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    session_id: str = ""


class TelemetryResponse(WireModel):
    """Always accepted."""

    status: Literal["accepted"] = "accepted"
