"""Tokens, and the API key that a request came with."""

from fastapi import APIRouter

from tinsmith_common.wire.auth import ApiKeyResponse, TokenResponse
from tinsmith_train.routers.dependencies import Caller, ServicesDep

router = APIRouter(prefix="/auth", tags=["accounts"])


@router.post("/token", summary="A token for an API key")
async def exchange(caller: Caller, services: ServicesDep) -> TokenResponse:
    """A JWT that both services take in place of the key."""
    return await services.credentials.exchange(caller)


@router.get("/apikey/me", summary="The caller's API key")
async def describe_key(caller: Caller, services: ServicesDep) -> ApiKeyResponse:
    """Its id, name and owner."""
    return await services.credentials.describe(caller)


@router.delete("/apikey/me", status_code=204, summary="Revoke the caller's API key")
async def revoke_key(caller: Caller, services: ServicesDep) -> None:
    """For good, and only this one."""
    await services.credentials.revoke(caller)
