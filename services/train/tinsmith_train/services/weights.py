"""Saving and loading a loaded model's weights, in the order of its lane."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from tinsmith_common.catalog import Catalog, RunRecord, SamplingSessionRecord
from tinsmith_common.checkpoints import CheckpointKind, TinkerPath, check_name
from tinsmith_common.errors import InvalidInput
from tinsmith_common.futures import PromiseKind
from tinsmith_common.http.errors import describe_validation
from tinsmith_common.wire.training import OperationAddress
from tinsmith_common.wire.weights import (
    LoadWeightsRequest,
    LoadWeightsResult,
    SaveWeightsExternalRequest,
    SaveWeightsExternalResult,
    SaveWeightsForSamplerRequest,
    SaveWeightsForSamplerResult,
    SaveWeightsRequest,
    SaveWeightsResult,
    WeightsInfoResponse,
)
from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.scheduler.operations import Task
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.exports import finish_export, parse_recipients
from tinsmith_train.services.models import as_text
from tinsmith_train.services.registry import ModelRegistry
from tinsmith_train.services.submission import Submissions

_Body = TypeVar("_Body", bound=BaseModel)
_Fill: TypeAlias = Callable[[Path], Awaitable[None]]


class WeightsService:
    """Named checkpoints, sampler weights, snapshots and inflight weights for sampling sessions, loads into a model."""

    def __init__(
        self,
        registry: ModelRegistry,
        submissions: Submissions,
        catalog: Catalog,
        checkpoints: CheckpointService,
    ) -> None:
        self._registry = registry
        self._submissions = submissions
        self._catalog = catalog
        self._checkpoints = checkpoints

    async def save(self, owner: str, address: OperationAddress, body: bytes) -> str:
        """Submit `save_weights`. Answers the request id."""

        def build() -> Task:
            request = _validated(SaveWeightsRequest, body)
            path = TinkerPath(address.model_id, CheckpointKind.TRAINING, check_name(request.path))
            run = self._run(owner, address)

            async def execute(backend: TrainBackend) -> bytes:
                async def fill(folder: Path) -> None:
                    await backend.save_state(run.id, folder)

                await self._checkpoints.save(
                    run,
                    path,
                    fill,
                    overwrite=request.overwrite,
                    ttl_seconds=request.ttl_seconds,
                    user_metadata=as_text(request.user_metadata),
                )
                return SaveWeightsResult(path=str(path)).model_dump_json().encode()

            return Task(execute)

        return await self._submit(owner, address, PromiseKind.SAVE_WEIGHTS, build)

    async def save_for_sampler(self, owner: str, address: OperationAddress, body: bytes) -> str:
        """Submit `save_weights_for_sampler`. Answers the request id."""

        def build() -> Task:
            request = _validated(SaveWeightsForSamplerRequest, body)
            run = self._run(owner, address)
            _check_sampled(run)
            if request.kind == "inflight":
                return self._inflight(run, address.seq_id, request)
            if request.path is not None:
                return self._named_sampler_weights(run, check_name(request.path), request)
            if request.sampling_session_seq_id is None:
                raise InvalidInput("save_weights_for_sampler needs a path or a sampling_session_seq_id")
            return self._snapshot(run, request.sampling_session_seq_id)

        return await self._submit(owner, address, PromiseKind.SAVE_WEIGHTS_FOR_SAMPLER, build)

    async def save_external(self, owner: str, address: OperationAddress, body: bytes) -> str:
        """Submit `save_weights_external`. Answers the request id."""

        def build() -> Task:
            request = _validated(SaveWeightsExternalRequest, body)
            path = TinkerPath(address.model_id, CheckpointKind.EXTERNAL, check_name(request.path))
            recipients = parse_recipients(request.age_encryption_recipients or ())
            run = self._run(owner, address)

            async def execute(backend: TrainBackend) -> bytes:
                async def fill(folder: Path) -> None:
                    await backend.export_adapter(run.id, folder)
                    await asyncio.to_thread(finish_export, folder, recipients)

                record = await self._checkpoints.save(
                    run, path, fill, overwrite=False, ttl_seconds=request.ttl_seconds, user_metadata=None
                )
                result = SaveWeightsExternalResult(path=str(path), size_bytes=record.size_bytes)
                return result.model_dump_json().encode()

            return Task(execute)

        return await self._submit(owner, address, PromiseKind.SAVE_WEIGHTS_EXTERNAL, build)

    async def load(self, owner: str, address: OperationAddress, body: LoadWeightsRequest) -> str:
        """Submit `load_weights` into a loaded model. Answers the request id."""

        def build() -> Task:
            run = self._run(owner, address)

            async def execute(backend: TrainBackend) -> bytes:
                checkpoint = await self._checkpoints.loadable(owner, body.path, body.weights_access_token)
                if (checkpoint.base_model, checkpoint.rank) != (run.base_model, run.rank):
                    raise InvalidInput(
                        f"{body.path} is rank {checkpoint.rank} on {checkpoint.base_model}; this model is "
                        f"rank {run.rank} on {run.base_model}"
                    )
                folder = await self._checkpoints.folder(checkpoint)
                await backend.load_state(run.id, folder, with_optimizer=body.optimizer)
                return LoadWeightsResult(path=body.path, model_id=run.id).model_dump_json().encode()

            return Task(execute)

        return await self._submit(owner, address, PromiseKind.LOAD_WEIGHTS, build)

    async def info(self, owner: str, path: str) -> WeightsInfoResponse:
        """What a checkpoint holds."""
        record = await self._checkpoints.readable(owner, path)
        return WeightsInfoResponse(
            base_model=record.base_model,
            is_lora=record.rank > 0,
            lora_rank=record.rank or None,
            train_unembed=record.train_unembed,
            train_mlp=record.train_mlp,
            train_attn=record.train_attn,
        )

    def _named_sampler_weights(
        self, run: RunRecord, name: str, request: SaveWeightsForSamplerRequest
    ) -> Task:
        path = TinkerPath(run.id, CheckpointKind.SAMPLER, name)

        async def execute(backend: TrainBackend) -> bytes:
            async def fill(folder: Path) -> None:
                await backend.export_adapter(run.id, folder)

            await self._checkpoints.save(
                run,
                path,
                fill,
                overwrite=False,
                ttl_seconds=request.ttl_seconds,
                user_metadata=as_text(request.user_metadata),
            )
            return SaveWeightsForSamplerResult(path=str(path)).model_dump_json(exclude_none=True).encode()

        return Task(execute)

    def _snapshot(self, run: RunRecord, sampling_session_seq_id: int) -> Task:
        key = f"{run.id}/snapshots/{sampling_session_seq_id}"

        async def save(fill: _Fill) -> None:
            await self._checkpoints.write(key, fill)

        return self._sampling_session(_sampler(run, sampling_session_seq_id, weights_key=key), run, save)

    def _inflight(self, run: RunRecord, version: int, request: SaveWeightsForSamplerRequest) -> Task:
        if request.path is not None or request.sampling_session_seq_id is None:
            raise InvalidInput(
                "inflight weights have no name: send a sampling_session_seq_id and no path, or use kind 'snapshot'"
            )
        if request.ttl_seconds is not None:
            raise InvalidInput(
                "inflight weights live as long as their session: leave ttl_seconds out, or use kind 'snapshot'"
            )

        async def save(fill: _Fill) -> None:
            await self._checkpoints.publish_inflight(run, version, fill)

        sampler = _sampler(run, request.sampling_session_seq_id, inflight_run=run.id)
        return self._sampling_session(sampler, run, save)

    def _sampling_session(
        self, sampler: SamplingSessionRecord, run: RunRecord, save: Callable[[_Fill], Awaitable[None]]
    ) -> Task:
        """Save the model's adapter, then open the session that serves it."""

        async def execute(backend: TrainBackend) -> bytes:
            async def fill(folder: Path) -> None:
                await backend.export_adapter(run.id, folder)

            if await self._catalog.sampling_sessions.get(sampler.id) is not None:
                raise InvalidInput(f"sampling session {sampler.id} exists")
            await save(fill)
            await self._catalog.sampling_sessions.create(sampler)
            result = SaveWeightsForSamplerResult(sampling_session_id=sampler.id)
            return result.model_dump_json(exclude_none=True).encode()

        return Task(execute)

    def _run(self, owner: str, address: OperationAddress) -> RunRecord:
        run = self._registry.find(owner, address.model_id)
        if run is None:
            raise InvalidInput(f"model {address.model_id} is not loaded")
        return run

    async def _submit(
        self, owner: str, address: OperationAddress, kind: PromiseKind, build: Callable[[], Task]
    ) -> str:
        return await self._submissions.submit(owner, address.model_id, address.seq_id, kind, build)


def _sampler(
    run: RunRecord,
    sampling_session_seq_id: int,
    *,
    weights_key: str | None = None,
    inflight_run: str | None = None,
) -> SamplingSessionRecord:
    return SamplingSessionRecord(
        id=f"{run.session_id}:sample:{sampling_session_seq_id}",
        session_id=run.session_id,
        owner=run.owner,
        base_model=run.base_model,
        created_at=datetime.now(UTC),
        weights_key=weights_key,
        inflight_run=inflight_run,
    )


def _check_sampled(run: RunRecord) -> None:
    if run.rank == 0:
        raise InvalidInput(
            f"{run.id} trains all weights (rank 0), and the sampler serves adapters: export the whole model with "
            "save_weights_external and serve that folder, or train a LoRA rank"
        )


def _validated(model: type[_Body], body: bytes) -> _Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidInput(describe_validation(error)) from error
