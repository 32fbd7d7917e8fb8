"""Copies of checkpoints, each in a new run of its own that cannot be trained."""

import uuid
from datetime import UTC, datetime

from tinsmith_common.catalog import Catalog, CopyRecord, SessionRecord
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
        path = str(TinkerPath(run.id, source.tinker_path.kind, source.name))
        if await self._catalog.runs.get(run.id) is not None:
            made = await self._catalog.copies.get(run.id)
            if made is None or made.source_path != source.path:
                raise InvalidInput(
                    f"{run.id} exists and is no copy of {source.path}; use another model_seq_id"
                )
            return path
        await self._catalog.copies.create(CopyRecord(run.id, source.path, run.created_at))
        copy = await self._checkpoints.copy(source, run, body.ttl_seconds)
        # Last, so that a copy that was interrupted is made again when it is asked for again.
        await self._catalog.runs.create(run)
        return copy.path

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
