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
from tinsmith_train.routers.dependencies import Caller, ServicesDep

router = APIRouter(tags=["bootstrap"])


@router.post("/client/config", summary="Switches for the client")
async def client_config(_body: ClientConfigRequest, _caller: Caller) -> ClientConfigResponse:
    """A bad key is found out here, at the client's first call."""
    return ClientConfigResponse()


@router.post("/client/dynamic_config", summary="Switches that may change while a client runs")
async def dynamic_config(_body: ClientConfigRequest, _caller: Caller) -> ClientDynamicConfigResponse:
    """Refreshed by clients every few minutes."""
    return ClientDynamicConfigResponse()


@router.get("/get_server_capabilities", summary="Base models")
async def get_server_capabilities(_caller: Caller, services: ServicesDep) -> ServerCapabilities:
    """The base models and their context lengths in tokens."""
    models = [
        SupportedModelInfo(model_name=base.name, max_context_length=base.info.max_context_length)
        for base in services.registry.bases.values()
    ]
    return ServerCapabilities(supported_models=models)


@router.post("/telemetry", summary="Client events")
async def telemetry(_body: TelemetryRequest, _caller: Caller) -> TelemetryResponse:
    """Answered at once: a client flushes this before it shows its user any exception."""
    return TelemetryResponse()
