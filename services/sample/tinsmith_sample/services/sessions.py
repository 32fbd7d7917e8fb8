"""Sampling sessions: what a sampling client samples from."""

import hashlib
from datetime import UTC, datetime

from tinsmith_common.catalog import Catalog, SamplingSessionRecord
from tinsmith_common.checkpoints import CheckpointKind, TinkerPath
from tinsmith_common.errors import InvalidInput, NotFound
from tinsmith_common.wire.sampling import CreateSamplingSessionRequest, SamplerResponse

_REMEMBERED = 10_000
"""Sessions whose owner is kept in memory; some 2 MB."""


class SamplingSessions:
    """Opens sessions on a base model or on saved sampler weights, and finds them again."""

    def __init__(self, catalog: Catalog, served: frozenset[str]) -> None:
        self._catalog = catalog
        self._served = served
        self._seen: set[tuple[str, str]] = set()

    async def create(self, owner: str, body: CreateSamplingSessionRequest) -> str:
        """Open a session and answer its id. Repeating the request answers the same id."""
        session = await self._catalog.sessions.get(body.session_id)
        if session is None or session.owner != owner:
            raise NotFound(f"no session {body.session_id}")
        return await self._open(owner, body)

    async def _open(self, owner: str, body: CreateSamplingSessionRequest) -> str:
        record = await self._record(owner, body)
        if record.base_model not in self._served:
            raise InvalidInput(
                f"base model {record.base_model!r} is not served here; served are: "
                f"{', '.join(sorted(self._served))}"
            )
        await self._catalog.sampling_sessions.create(record)
        return record.id

    async def shared(self, owner: str, model_path: str | None, base_model: str | None) -> str:
        """A sampling session outside any client session, the same for every request of this owner and model."""
        target = f"{owner}\n{model_path or base_model}"
        body = CreateSamplingSessionRequest(
            session_id=f"shared-{hashlib.sha256(target.encode()).hexdigest()[:32]}",
            sampling_session_seq_id=0,
            model_path=model_path,
            base_model=base_model,
        )
        return await self._open(owner, body)

    async def get(self, owner: str, sampling_session_id: str) -> SamplingSessionRecord:
        """The session. Raises `NotFound` when it is unknown or somebody else's."""
        record = await self._catalog.sampling_sessions.get(sampling_session_id)
        if record is None or record.owner != owner:
            raise NotFound(f"no sampling session {sampling_session_id}")
        return record

    async def is_of(self, owner: str, sampling_session_id: str) -> bool:
        """Whether the session exists and is the owner's. Asked for every sample, so mostly answered from memory."""
        if (owner, sampling_session_id) in self._seen:
            return True
        record = await self._catalog.sampling_sessions.get(sampling_session_id)
        if record is None or record.owner != owner:
            return False
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen.add((owner, sampling_session_id))
        return True

    async def join(self, owner: str, sampling_session_id: str) -> int:
        """A number, at least 1, that no other client of the session gets. Raises `NotFound`."""
        await self.get(owner, sampling_session_id)
        return await self._catalog.sampling_sessions.next_clone(sampling_session_id)

    async def describe(self, owner: str, sampling_session_id: str) -> SamplerResponse:
        """What `GET /samplers/{id}` answers."""
        record = await self.get(owner, sampling_session_id)
        return SamplerResponse(
            sampler_id=record.id, base_model=record.base_model, model_path=record.model_path
        )

    async def _record(self, owner: str, body: CreateSamplingSessionRequest) -> SamplingSessionRecord:
        base_model, weights_key = body.base_model, None
        if body.model_path is not None:
            base_model, weights_key = await self.weights(owner, body.model_path)
        if base_model is None:
            raise InvalidInput("name what to sample from: a model_path or a base_model")
        return SamplingSessionRecord(
            id=f"{body.session_id}:sample:{body.sampling_session_seq_id}",
            session_id=body.session_id,
            owner=owner,
            base_model=base_model,
            created_at=datetime.now(UTC),
            model_path=body.model_path,
            weights_key=weights_key,
        )

    async def weights(self, owner: str, model_path: str) -> tuple[str, str]:
        """Base model and checkpoint key of the sampler weights at a `tinker://` path.

        Raises `InvalidInput` when it is the path of something else, `NotFound` when there is nothing for `owner`.
        """
        if TinkerPath.parse(model_path).kind is not CheckpointKind.SAMPLER:
            raise InvalidInput(
                f"{model_path} is no sampler checkpoint: save one with save_weights_for_sampler "
                "(its path holds /sampler_weights/)"
            )
        checkpoint = await self._catalog.checkpoints.find(model_path)
        if checkpoint is None or not (checkpoint.public or checkpoint.owner == owner):
            raise NotFound(f"no checkpoint {model_path}")
        return checkpoint.base_model, checkpoint.key
