"""What a client asks before anything else."""

from fastapi import APIRouter

from tinsmith_common.wire.service import (
    ClientConfigRequest,
    ClientConfigResponse,
    ClientDynamicConfigResponse,
    ServerCapabilities,
    SupportedModelInfo,
    TelemetryRequest,
    TelemetryResponse,
)
from tinsmith_train.routers.dependencies import Caller, ConfigDep, ServicesDep

router = APIRouter(tags=["bootstrap"])


@router.post("/client/config", summary="Switches for the client")
async def client_config(
    _body: ClientConfigRequest, _caller: Caller, config: ConfigDep
) -> ClientConfigResponse:
    """A bad key is found out here, at the client's first call."""
    return ClientConfigResponse(
        pjwt_auth_enabled=config.pjwt_auth_enabled,
        sample_use_retrieve_futures=config.client_batch_polls,
        sample_join_sampling_session=config.client_joins_sessions,
        proto_compress_fwdbwd=config.client_zstd,
        fwdbwd_max_chunk_len=config.client_chunk_datums,
        fwdbwd_max_chunk_bytes_count=config.chunk_bytes,
        # Room for the chunk that is being sent and the next one.
        fwdbwd_dispatch_bytes_semaphore_size=max(50_000_000, 2 * config.chunk_bytes),
    )


@router.post("/client/dynamic_config", summary="Switches that may change while a client runs")
async def dynamic_config(
    _body: ClientConfigRequest, _caller: Caller, config: ConfigDep
) -> ClientDynamicConfigResponse:
    """Refreshed by clients every few minutes."""
    return ClientDynamicConfigResponse(sample_cancel_enabled=config.client_cancels)


@router.get("/get_server_capabilities", summary="Base models")
async def get_server_capabilities(_caller: Caller, services: ServicesDep) -> ServerCapabilities:
    """The base models and their context lengths in tokens."""
    models = [
        SupportedModelInfo(model_name=base.name, max_context_length=base.info.max_context_length)
        for base in services.registry.bases.values()
    ]
    return ServerCapabilities(supported_models=models)


@router.post("/telemetry", summary="Client events")
async def telemetry(body: TelemetryRequest, caller: Caller, services: ServicesDep) -> TelemetryResponse:
    """Answered at once: a client flushes this before it shows its user any exception."""
    services.history.note_events(caller.owner, body.events)
    return TelemetryResponse()
