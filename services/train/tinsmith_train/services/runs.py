"""Training runs as listings show them."""

from collections.abc import Sequence

from tinsmith_common.catalog import Catalog, CheckpointRecord, Page, RunRecord
from tinsmith_common.checkpoints import CheckpointKind
from tinsmith_common.errors import NotFound
from tinsmith_common.wire.runs import (
    AccessScope,
    Checkpoint,
    CheckpointsResponse,
    Cursor,
    TrainingRun,
    TrainingRunsResponse,
)
from tinsmith_train.services.checkpoints import CheckpointService


class RunService:
    """Reads runs and their checkpoints, always of one owner."""

    def __init__(self, catalog: Catalog, checkpoints: CheckpointService) -> None:
        self._catalog = catalog
        self._checkpoints = checkpoints

    async def list_runs(
        self, owner: str, offset: int, limit: int, scope: AccessScope, project_id: str | None
    ) -> TrainingRunsResponse:
        """A page of runs, newest first. Others' runs are accessible while they have a public checkpoint."""
        page = await self._catalog.runs.visible_to(
            owner, offset, limit, accessible=scope == "accessible", project_id=project_id
        )
        runs = [await self._describe(owner, run) for run in page.items]
        return TrainingRunsResponse(training_runs=runs, cursor=_cursor(page))

    async def get_run(self, owner: str, run_id: str, scope: AccessScope) -> TrainingRun:
        """One run. Raises `NotFound`."""
        run = await self._catalog.runs.get(run_id)
        if run is None or (run.owner != owner and scope == "owned"):
            raise NotFound(f"no training run {run_id}")
        if run.owner != owner and not await self._visible(owner, run):
            raise NotFound(f"no training run {run_id}")
        return await self._describe(owner, run)

    async def checkpoints_of_run(
        self, owner: str, run_id: str, *, exports: bool = True
    ) -> CheckpointsResponse:
        """The checkpoints of one run, oldest first; of somebody else's, the public ones. With or without exports."""
        run = await self._catalog.runs.get(run_id)
        records = () if run is None else await self._visible(owner, run)
        if run is None or (run.owner != owner and not records):
            raise NotFound(f"no training run {run_id}")
        shown = [record for record in records if exports or record.kind != CheckpointKind.EXTERNAL]
        return CheckpointsResponse(checkpoints=[to_wire(record) for record in shown])

    async def checkpoints_of_owner(
        self, owner: str, offset: int, limit: int, *, exports: bool = True
    ) -> CheckpointsResponse:
        """A page of all the owner's checkpoints, newest first, with or without exports."""
        page = await self._checkpoints.of_owner(owner, offset, limit, exports=exports)
        return CheckpointsResponse(
            checkpoints=[to_wire(record) for record in page.items], cursor=_cursor(page)
        )

    async def _visible(self, owner: str, run: RunRecord) -> tuple[CheckpointRecord, ...]:
        records = await self._checkpoints.of_run(run.id)
        return tuple(record for record in records if record.public or record.owner == owner)

    async def _describe(self, owner: str, run: RunRecord) -> TrainingRun:
        checkpoints = await self._visible(owner, run)
        return TrainingRun(
            training_run_id=run.id,
            base_model=run.base_model,
            model_owner=run.owner,
            is_lora=run.rank > 0,
            lora_rank=run.rank or None,
            corrupted=run.corrupted,
            last_request_time=run.last_request_at,
            last_checkpoint=_latest(checkpoints, CheckpointKind.TRAINING),
            last_sampler_checkpoint=_latest(checkpoints, CheckpointKind.SAMPLER),
            user_metadata=None if run.user_metadata is None else dict(run.user_metadata),
        )


def to_wire(record: CheckpointRecord) -> Checkpoint:
    """A checkpoint as the SDK reads it."""
    return Checkpoint(
        checkpoint_id=record.tinker_path.checkpoint_id,
        checkpoint_type=record.tinker_path.kind.checkpoint_type,
        time=record.created_at,
        tinker_path=record.path,
        base_model=record.base_model,
        size_bytes=record.size_bytes,
        public=record.public,
        user_metadata=None if record.user_metadata is None else dict(record.user_metadata),
        expires_at=record.expires_at,
    )


def _latest(records: Sequence[CheckpointRecord], kind: CheckpointKind) -> Checkpoint | None:
    matching = [record for record in records if record.kind == kind]
    return to_wire(matching[-1]) if matching else None


def _cursor(page: Page[RunRecord] | Page[CheckpointRecord]) -> Cursor:
    return Cursor(offset=page.offset, limit=page.limit, total_count=page.total)
