"""What handlers ask for in their signatures. All async: FastAPI runs the others in threads, four hops per request."""

from typing import Annotated, cast

from fastapi import Depends, Header, Request

from tinsmith_common.auth import Principal
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores


def get_stores(request: Request) -> Stores:
    """The app's stores."""
    return cast(Stores, request.app.state.stores)


async def provide_stores(request: Request) -> Stores:
    """The app's stores, for handlers."""
    return get_stores(request)


async def get_settings(request: Request) -> CommonSettings:
    """The app's settings."""
    return cast(CommonSettings, request.app.state.settings)


async def get_principal(
    request: Request,
    x_api_key: Annotated[str | None, Header()] = None,
    authorization: Annotated[str | None, Header()] = None,
) -> Principal:
    """The account of the key or token in `X-API-Key` or else in `Authorization: Bearer`. Raises `Unauthorized`."""
    return await get_stores(request).authenticator.authenticate(x_api_key or _bearer_token(authorization))


def _bearer_token(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


SharedStores = Annotated[Stores, Depends(provide_stores)]
SharedSettings = Annotated[CommonSettings, Depends(get_settings)]
Caller = Annotated[Principal, Depends(get_principal)]
