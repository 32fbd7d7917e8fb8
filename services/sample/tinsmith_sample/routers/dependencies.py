"""What handlers ask for in their signatures."""

from typing import Annotated, cast

from fastapi import Depends, Request

from tinsmith_sample.services.sampling import SamplingService
from tinsmith_sample.services.sessions import SamplingSessions


async def get_sessions(request: Request) -> SamplingSessions:
    """The app's sampling sessions."""
    return cast(SamplingSessions, request.app.state.sessions)


async def get_sampling(request: Request) -> SamplingService:
    """The app's sampling service."""
    return cast(SamplingService, request.app.state.sampling)


async def get_body(request: Request) -> bytes:
    """The raw body."""
    return await request.body()


SessionsDep = Annotated[SamplingSessions, Depends(get_sessions)]
SamplingDep = Annotated[SamplingService, Depends(get_sampling)]
Body = Annotated[bytes, Depends(get_body)]
