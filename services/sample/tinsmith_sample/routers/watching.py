"""What the page at `/ui` reads of sampling."""

from fastapi import APIRouter

from tinsmith_common.http import Caller
from tinsmith_common.wire.watch import WatchSampling
from tinsmith_sample.routers.dependencies import WatchingDep

router = APIRouter(prefix="/ui", tags=["watching"])


@router.get("/sampling", summary="Replicas, adapters and recent errors")
async def sampling(caller: Caller, watching: WatchingDep) -> WatchSampling:
    """Of the caller; of everybody for the configured key."""
    return await watching.sampling(caller)
