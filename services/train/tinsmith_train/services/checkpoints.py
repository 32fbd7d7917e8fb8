"""Checkpoints: written by a model's lane, found by path, listed, deleted, expired."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tinsmith_common.auth import Authenticator
from tinsmith_common.catalog import Catalog, CheckpointRecord, InflightRecord, Page, RunRecord
from tinsmith_common.checkpoints import CheckpointKind, CheckpointStore, TinkerPath
from tinsmith_common.errors import Conflict, InvalidInput, NameConflict, NotFound, Unauthorized
from tinsmith_train.services.audit import AuditLog


class CheckpointService:
    """Keeps the catalog and the folders in step: a record exists only for a complete folder."""

    def __init__(
        self, catalog: Catalog, store: CheckpointStore, authenticator: Authenticator, audit: AuditLog
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._authenticator = authenticator
        self._audit = audit

    async def write(self, key: str, fill: Callable[[Path], Awaitable[None]]) -> int:
        """Let `fill` write into a fresh folder and put it in place. Returns its size in bytes."""
        staging = await asyncio.to_thread(self._store.begin, key)
        try:
            await fill(staging)
            return await asyncio.to_thread(self._store.commit, staging, key)
        except BaseException:
            self._store.abandon(staging)
            raise

    async def publish_inflight(
        self, run: RunRecord, version: int, fill: Callable[[Path], Awaitable[None]]
    ) -> None:
        """Make what `fill` writes the weights that the run's inflight sampling sessions serve. Versions only rise.

        The weights before stay until the next time, for samples that are about to load them.
        """
        key = f"{run.id}/inflight/{version}"
        await self.write(key, fill)
        before = await self._catalog.inflight.get(run.id)
        await self._catalog.inflight.put(InflightRecord(run.id, key, datetime.now(UTC)))
        kept = () if before is None else (before.weights_key,)
        await asyncio.to_thread(self._store.delete_beside, key, *kept)

    async def save(
        self,
        run: RunRecord,
        path: TinkerPath,
        fill: Callable[[Path], Awaitable[None]],
        *,
        overwrite: bool,
        ttl_seconds: int | None,
        user_metadata: Mapping[str, str] | None,
    ) -> CheckpointRecord:
        """Write a named checkpoint of `run`. Raises `NameConflict` when the name is taken."""
        if not overwrite and await self._catalog.checkpoints.find(str(path)) is not None:
            raise NameConflict(f"{path} exists; choose another name, or save with overwrite=True")
        size = await self.write(path.key, fill)
        now = datetime.now(UTC)
        record = CheckpointRecord(
            path=str(path),
            run_id=run.id,
            owner=run.owner,
            kind=path.kind.value,
            name=path.name,
            key=path.key,
            size_bytes=size,
            created_at=now,
            base_model=run.base_model,
            rank=run.rank,
            alpha=run.alpha,
            train_attn=run.train_attn,
            train_mlp=run.train_mlp,
            train_unembed=run.train_unembed,
            expires_at=_expiry(now, ttl_seconds),
            user_metadata=user_metadata,
        )
        await self._catalog.checkpoints.save(record, run.session_id)
        await self._note(record, "checkpoint_create", session_id=run.session_id)
        return record

    async def readable(self, owner: str, path: str, access_token: str | None = None) -> CheckpointRecord:
        """A checkpoint that `owner` may read, because it is theirs, public, or of the account whose credential
        `access_token` is. Raises `InvalidInput` or `NotFound`."""
        found = await self.live(path)
        if found.public or found.owner == owner:
            return found
        if access_token is None or found.owner != await self._owner_of(access_token):
            raise NotFound(_missing(path))
        return found

    async def live(self, path: str) -> CheckpointRecord:
        """The checkpoint of that path, whoever owns it. Raises `InvalidInput` or `NotFound`."""
        found = await self._catalog.checkpoints.find(str(TinkerPath.parse(path)))
        if found is None:
            raise NotFound(_missing(path))
        return found

    async def loadable(self, owner: str, path: str, access_token: str | None = None) -> CheckpointRecord:
        """A readable checkpoint that training can continue from."""
        record = await self.readable(owner, path, access_token)
        if record.kind != CheckpointKind.TRAINING:
            raise InvalidInput(f"{path} holds weights for sampling; load one that save_state made")
        return record

    async def folder(self, record: CheckpointRecord) -> Path:
        """Where the files of a checkpoint are."""
        return await asyncio.to_thread(self._store.folder, record.key)

    async def owned(self, owner: str, run_id: str, checkpoint_id: str) -> CheckpointRecord:
        """The owner's checkpoint by its place in a run. Raises `NotFound`."""
        path = f"tinker://{run_id}/{checkpoint_id}"
        record = await self._catalog.checkpoints.find(str(TinkerPath.parse(path)))
        if record is None or record.owner != owner:
            raise NotFound(f"no checkpoint {path}")
        return record

    async def of_owner(self, owner: str, offset: int, limit: int, *, exports: bool) -> Page[CheckpointRecord]:
        """The owner's checkpoints, newest first, with or without exports."""
        return await self._catalog.checkpoints.of_owner(owner, offset, limit, exports=exports)

    async def of_run(self, run_id: str) -> tuple[CheckpointRecord, ...]:
        """A run's checkpoints, oldest first."""
        return await self._catalog.checkpoints.of_run(run_id)

    async def set_public(self, record: CheckpointRecord, public: bool) -> None:
        """Publish a checkpoint, or withdraw it. Raises `Conflict` when it is so already."""
        if not await self._catalog.checkpoints.set_public(record.path, public):
            raise Conflict(f"{record.path} is {'already' if public else 'not'} public")
        await self._note(record, "checkpoint_publish" if public else "checkpoint_unpublish")

    async def copy(
        self, source: CheckpointRecord, run: RunRecord, ttl_seconds: int | None
    ) -> CheckpointRecord:
        """Give `run` a private copy of a checkpoint, of the same kind and name."""
        path = TinkerPath(run.id, source.tinker_path.kind, source.name)
        size = await asyncio.to_thread(self._store.copy, source.key, path.key)
        now = datetime.now(UTC)
        copy = replace(
            source,
            path=str(path),
            run_id=run.id,
            owner=run.owner,
            key=path.key,
            size_bytes=size,
            created_at=now,
            expires_at=_expiry(now, ttl_seconds),
            public=False,
        )
        await self._catalog.checkpoints.save(copy, run.session_id)
        await self._note(copy, "checkpoint_copy", source_path=source.path)
        return copy

    async def set_ttl(self, record: CheckpointRecord, ttl_seconds: int | None) -> None:
        """Let a checkpoint expire `ttl_seconds` from now; None keeps it for ever."""
        expires_at = _expiry(datetime.now(UTC), ttl_seconds)
        await self._catalog.checkpoints.update(record.path, expires_at=expires_at)
        await self._note(record, "checkpoint_ttl_set", ttl_seconds=ttl_seconds)

    async def delete(self, record: CheckpointRecord) -> None:
        """Remove a checkpoint as its owner asks."""
        await self._remove(record)
        await self._note(record, "checkpoint_delete")

    async def delete_snapshots(self, session_id: str) -> None:
        """Remove the unnamed sampler weights of a session; nothing can name them once it has ended."""
        for sampler in await self._catalog.sampling_sessions.of_session(session_id):
            if sampler.weights_key is not None and sampler.model_path is None:
                await self._catalog.sampling_sessions.delete(sampler.id)
                await asyncio.to_thread(self._store.delete, sampler.weights_key)
            elif sampler.inflight_run is not None:
                await self._catalog.sampling_sessions.delete(sampler.id)
                await self._catalog.inflight.delete(sampler.inflight_run)
                await asyncio.to_thread(self._store.delete, f"{sampler.inflight_run}/inflight")

    async def delete_expired(self) -> int:
        """Remove what is past its time. Returns how many."""
        expired = await self._catalog.checkpoints.expired()
        for record in expired:
            await self._remove(record)
            await self._note(record, "checkpoint_expire")
        return len(expired)

    async def _remove(self, record: CheckpointRecord) -> None:
        """The record first, then the folder: what is listed can always be loaded."""
        await self._catalog.checkpoints.delete(record.path)
        await asyncio.to_thread(self._store.delete, record.key)

    async def _note(self, record: CheckpointRecord, event: str, **details: str | int | None) -> None:
        await self._audit.note(record.owner, event, tinker_path=record.path, **details)

    async def _owner_of(self, access_token: str) -> str | None:
        try:
            return (await self._authenticator.authenticate(access_token)).owner
        except Unauthorized:
            return None


def _expiry(now: datetime, ttl_seconds: int | None) -> datetime | None:
    return None if ttl_seconds is None else now + timedelta(seconds=ttl_seconds)


def _missing(path: str) -> str:
    return f"no checkpoint {path}: it was never saved, was deleted, or expired"
