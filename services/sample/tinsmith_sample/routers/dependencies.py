"""What handlers ask for in their signatures."""

from typing import Annotated, cast

from fastapi import Depends, Request

from tinsmith_sample.services.direct import DirectSampling
from tinsmith_sample.services.inference.container import InferenceServices
from tinsmith_sample.services.sampling import SamplingService
from tinsmith_sample.services.sessions import SamplingSessions
from tinsmith_sample.services.watching import WatchService


async def get_sessions(request: Request) -> SamplingSessions:
    """The app's sampling sessions."""
    return cast(SamplingSessions, request.app.state.sessions)


async def get_sampling(request: Request) -> SamplingService:
    """The app's sampling service."""
    return cast(SamplingService, request.app.state.sampling)


def get_inference(request: Request) -> InferenceServices:
    """What the app's inference routes need."""
    return cast(InferenceServices, request.app.state.inference)


def get_direct(request: Request) -> DirectSampling:
    """Sampling by one request and its answer."""
    return cast(DirectSampling, request.app.state.direct)


async def get_watching(request: Request) -> WatchService:
    """What the page at `/ui` reads."""
    return cast(WatchService, request.app.state.watching)


async def get_body(request: Request) -> bytes:
    """The raw body."""
    return await request.body()


SessionsDep = Annotated[SamplingSessions, Depends(get_sessions)]
DirectDep = Annotated[DirectSampling, Depends(get_direct)]
SamplingDep = Annotated[SamplingService, Depends(get_sampling)]
InferenceDep = Annotated[InferenceServices, Depends(get_inference)]
WatchingDep = Annotated[WatchService, Depends(get_watching)]
Body = Annotated[bytes, Depends(get_body)]
