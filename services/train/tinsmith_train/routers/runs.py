"""Training runs and their checkpoints."""

from fastapi import APIRouter

from tinsmith_common.wire.runs import (
    AccessScope,
    CheckpointsResponse,
    SetTtlRequest,
    TrainingRun,
    TrainingRunsResponse,
)
from tinsmith_train.routers.dependencies import Caller, Limit, ListsExports, Offset, ServicesDep

router = APIRouter(tags=["runs"])


@router.get("/training_runs", summary="List runs")
async def list_training_runs(
    caller: Caller,
    services: ServicesDep,
    limit: Limit = 20,
    offset: Offset = 0,
    access_scope: AccessScope = "owned",
    project_id: str | None = None,
) -> TrainingRunsResponse:
    """Newest first."""
    return await services.runs.list_runs(caller.owner, offset, limit, access_scope, project_id)


@router.get("/training_runs/{run_id}", summary="One run")
async def get_training_run(
    run_id: str, caller: Caller, services: ServicesDep, access_scope: AccessScope = "owned"
) -> TrainingRun:
    """With its latest checkpoints."""
    return await services.runs.get_run(caller.owner, run_id, access_scope)


@router.get("/training_runs/{run_id}/checkpoints", summary="A run's checkpoints")
async def list_run_checkpoints(
    run_id: str, caller: Caller, services: ServicesDep, exports: ListsExports
) -> CheckpointsResponse:
    """Oldest first."""
    return await services.runs.checkpoints_of_run(caller.owner, run_id, exports=exports)


@router.get("/checkpoints", summary="List checkpoints")
async def list_checkpoints(
    caller: Caller, services: ServicesDep, exports: ListsExports, limit: Limit = 100, offset: Offset = 0
) -> CheckpointsResponse:
    """All of the caller's, newest first."""
    return await services.runs.checkpoints_of_owner(caller.owner, offset, limit, exports=exports)


@router.put(
    "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}/ttl", status_code=204, summary="Set expiry"
)
async def set_checkpoint_ttl(
    run_id: str, checkpoint_id: str, body: SetTtlRequest, caller: Caller, services: ServicesDep
) -> None:
    """Counts from now; null keeps for ever."""
    record = await services.checkpoints.owned(caller.owner, run_id, checkpoint_id)
    await services.checkpoints.set_ttl(record, body.ttl_seconds)


@router.post(
    "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}/publish", status_code=204, summary="Publish"
)
async def publish_checkpoint(run_id: str, checkpoint_id: str, caller: Caller, services: ServicesDep) -> None:
    """Everyone may load it."""
    record = await services.checkpoints.owned(caller.owner, run_id, checkpoint_id)
    await services.checkpoints.set_public(record, True)


@router.delete(
    "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}/publish", status_code=204, summary="Withdraw"
)
async def unpublish_checkpoint(
    run_id: str, checkpoint_id: str, caller: Caller, services: ServicesDep
) -> None:
    """Only its owner may load it again."""
    record = await services.checkpoints.owned(caller.owner, run_id, checkpoint_id)
    await services.checkpoints.set_public(record, False)


@router.delete("/training_runs/{run_id}/checkpoints/{checkpoint_id:path}", status_code=204, summary="Delete")
async def delete_checkpoint(run_id: str, checkpoint_id: str, caller: Caller, services: ServicesDep) -> None:
    """Removes the record and the files."""
    record = await services.checkpoints.owned(caller.owner, run_id, checkpoint_id)
    await services.checkpoints.delete(record)
