"""What the page at `/ui` reads of training."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from tinsmith_common.wire.base import UtcDatetime
from tinsmith_common.wire.watch import WatchRunHistory, WatchTraining
from tinsmith_train.routers.dependencies import Caller, ServicesDep

router = APIRouter(prefix="/ui", tags=["watching"])


@router.get("/training", summary="Runs, lanes and recent errors")
async def training(request: Request, caller: Caller, services: ServicesDep) -> WatchTraining:
    """Of the caller; of everybody for the configured key."""
    state = request.app.state
    tokens = state.registry.get_sample_value("tinsmith_train_tokens_total") or 0
    return await services.watching.training(caller, ready=state.ready, trained_tokens=int(tokens))


@router.get("/runs/{run_id}/history", summary="A run's curves")
async def history(
    run_id: str,
    caller: Caller,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    reported_after: UtcDatetime | None = None,
) -> WatchRunHistory:
    """Its optimizer steps after the number `after`, and what its client reported after a time."""
    return await services.watching.history(caller, run_id, after, reported_after)
