"""Copies of checkpoints, each in a new run of its own that cannot be trained."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime

from tinsmith_common.catalog import Catalog, RunRecord, SessionRecord
from tinsmith_common.checkpoints import TinkerPath
from tinsmith_common.errors import InvalidInput, NotFound
from tinsmith_common.wire.weights import CopyWeightsRequest
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.models import model_id_of, new_run, spec_of


class CopyService:
    """Copies what the caller may read into what the caller owns."""

    def __init__(self, catalog: Catalog, checkpoints: CheckpointService) -> None:
        self._catalog = catalog
        self._checkpoints = checkpoints

    async def copy(
        self, owner: str, body: CopyWeightsRequest, idempotency_key: str | None, access_token: str | None
    ) -> str:
        """Copy a checkpoint. Answers the path of the copy; repeating a request answers the same path."""
        source = await self._checkpoints.readable(owner, body.source_path, access_token)
        session_id, model_seq_id = await self._destination(owner, body, idempotency_key)
        run_id = model_id_of(session_id, model_seq_id)
        run = new_run(owner, session_id, run_id, source.base_model, spec_of(source), source.user_metadata)
        run = replace(run, copied_from=source.path)
        # First, so that no model can take this place in the session while the files are copied.
        if not await self._catalog.runs.create(run):
            await self._check_same_copy(run)
            path = str(TinkerPath(run.id, source.tinker_path.kind, source.name))
            if await self._catalog.checkpoints.find(path) is not None:
                return path
            # It was interrupted before its end, and is made again.
        return (await self._checkpoints.copy(source, run, body.ttl_seconds)).path

    async def _check_same_copy(self, run: RunRecord) -> None:
        existing = await self._catalog.runs.get(run.id)
        if existing is None or existing.copied_from != run.copied_from:
            raise InvalidInput(
                f"{run.id} exists and is no copy of {run.copied_from}; use another model_seq_id"
            )

    async def _destination(
        self, owner: str, body: CopyWeightsRequest, idempotency_key: str | None
    ) -> tuple[str, int]:
        """The session and place in it that the copy's run gets: named, or of a new session in a project."""
        if body.session_id is not None and body.model_seq_id is not None:
            session = await self._catalog.sessions.get(body.session_id)
            if session is None or session.owner != owner:
                raise NotFound(f"no session {body.session_id}; create one first")
            return body.session_id, body.model_seq_id
        if body.destination_project_id is None:
            raise InvalidInput("copy_weights needs destination_project_id, or session_id and model_seq_id")
        now = datetime.now(UTC)
        session_id = _session_id(owner, idempotency_key)
        record = SessionRecord(
            id=session_id,
            owner=owner,
            created_at=now,
            last_seen_at=now,
            display_name="copied weights",
            project_id=body.destination_project_id,
            finish_reason="success",
            closed_at=now,
        )
        await self._catalog.sessions.create(record)
        return session_id, 0


def _session_id(owner: str, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"tinsmith:copy_weights:{owner}:{idempotency_key}"))
