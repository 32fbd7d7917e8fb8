"""Models: created fresh or from a checkpoint, described, and closed with their session."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from tinsmith_common.catalog import Catalog, CheckpointRecord, RunRecord
from tinsmith_common.errors import InvalidInput, NotFound
from tinsmith_common.futures import FutureStore, PromiseKind
from tinsmith_common.wire.legacy import UnloadModelResult
from tinsmith_common.wire.training import (
    CreateModelRequest,
    CreateModelResult,
    GetInfoResponse,
    ModelData,
    OptimizerConfig,
)
from tinsmith_common.wire.weights import LoadWeightsRequest, LoadWeightsResult
from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.engine.types import LoraSpec
from tinsmith_train.scheduler.lanes import Farewell
from tinsmith_train.scheduler.operations import Operation, Task
from tinsmith_train.scheduler.scheduler import as_tinsmith_error
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.registry import ModelRegistry

LORA_ALPHA = 32.0
"""No alpha travels on the wire; exports of the hosted service use this one."""


class ModelService:
    """Gives sessions models. A creation is `seq_id` 0 of the model's lane."""

    def __init__(
        self,
        registry: ModelRegistry,
        futures: FutureStore,
        catalog: Catalog,
        checkpoints: CheckpointService,
        max_rank: int,
    ) -> None:
        self._registry = registry
        self._futures = futures
        self._catalog = catalog
        self._checkpoints = checkpoints
        self._max_rank = max_rank

    async def create(self, owner: str, body: CreateModelRequest) -> str:
        """Create a model with a fresh adapter. Answers the request id."""
        model_id = model_id_of(body.session_id, body.model_seq_id)
        config = body.lora_config
        spec = LoraSpec(
            rank=config.rank,
            alpha=LORA_ALPHA,
            seed=config.seed,
            train_attn=config.train_attn,
            train_mlp=config.train_mlp,
            train_unembed=config.train_unembed,
        )

        async def run(backend: TrainBackend) -> bytes:
            await backend.create_adapter(model_id, spec)
            return CreateModelResult(model_id=model_id).model_dump_json().encode()

        async def prepare() -> tuple[RunRecord, Task]:
            _check_optimizer(body.optimizer_config)
            self._check_spec(spec)
            self._registry.base(body.base_model)
            return new_run(owner, body.session_id, model_id, body.base_model, spec, body.user_metadata), Task(
                run
            )

        return await self._begin(owner, body.session_id, model_id, PromiseKind.CREATE_MODEL, prepare)

    async def create_from_checkpoint(self, owner: str, body: LoadWeightsRequest) -> str:
        """Create a model from saved weights (create-via-load). Answers the request id."""
        if body.session_id is None or body.model_seq_id is None:
            raise InvalidInput("load_weights needs session_id and model_seq_id, or model_id and seq_id")
        model_id = model_id_of(body.session_id, body.model_seq_id)
        session_id = body.session_id

        async def prepare() -> tuple[RunRecord, Task]:
            _check_optimizer(body.optimizer_config)
            checkpoint = await self._checkpoints.loadable(owner, body.path, body.weights_access_token)
            _check_base(checkpoint, body.base_model)
            self._registry.base(checkpoint.base_model)

            async def run(backend: TrainBackend) -> bytes:
                folder = await self._checkpoints.folder(checkpoint)
                await backend.load_state(model_id, folder, with_optimizer=body.optimizer)
                return LoadWeightsResult(path=body.path, model_id=model_id).model_dump_json().encode()

            spec = spec_of(checkpoint)
            record = new_run(owner, session_id, model_id, checkpoint.base_model, spec, body.user_metadata)
            return record, Task(run)

        return await self._begin(owner, session_id, model_id, PromiseKind.LOAD_WEIGHTS, prepare)

    async def info(self, owner: str, model_id: str) -> GetInfoResponse:
        """Facts of one of the owner's models. Raises `NotFound`."""
        run = await self._catalog.runs.get(model_id)
        if run is None or run.owner != owner:
            raise NotFound(f"no model {model_id}")
        base = self._registry.base(run.base_model)
        data = ModelData(
            arch=base.info.architecture, model_name=run.base_model, tokenizer_id=base.tokenizer_id
        )
        return GetInfoResponse(
            model_id=model_id,
            model_data=data,
            is_lora=run.rank > 0,
            lora_rank=run.rank or None,
            model_name=run.base_model,
        )

    async def unload(self, owner: str, model_id: str) -> str:
        """Free a model once what was submitted has run. One that is not loaded any more is free already.

        Answers the request id; a model that is unknown fails its promise.
        """
        request_id = f"{model_id}:unload"
        if not (await self._futures.submit(request_id, PromiseKind.UNLOAD_MODEL, owner)).created:
            return request_id
        known = await self._catalog.runs.get(model_id)
        payload = UnloadModelResult(model_id=model_id).model_dump_json().encode()
        # From here to the lane without a pause, in which the lane could close.
        loaded = self._registry.find(owner, model_id)
        if loaded is not None:
            self._registry.remove(model_id)
            self._registry.scheduler_of(loaded).close_lane(model_id, Farewell(request_id, payload))
        elif known is not None and known.owner == owner:
            await self._futures.resolve(request_id, payload)
        else:
            await self._futures.fail(request_id, f"no model {model_id}", NotFound.category)
        return request_id

    async def close_session(self, session_id: str) -> None:
        """Free the adapters of a session once what was submitted has run, and its unnamed snapshots."""
        for run in self._registry.remove_session(session_id):
            self._registry.scheduler_of(run).close_lane(run.id)
        await self._checkpoints.delete_snapshots(session_id)

    async def _begin(
        self,
        owner: str,
        session_id: str,
        model_id: str,
        kind: PromiseKind,
        prepare: Callable[[], Awaitable[tuple[RunRecord, Task]]],
    ) -> str:
        session = await self._catalog.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise NotFound(f"no session {session_id}; create one first")
        if session.closed_at is not None:
            raise InvalidInput(f"session {session_id} has ended; create a new one")
        request_id = f"{model_id}:0"
        submission = await self._futures.submit(request_id, kind, owner)
        if not submission.created:
            return request_id
        try:
            run, task = await prepare()
            if not await self._catalog.runs.create(run):
                raise InvalidInput(
                    f"{model_id} exists already, as a copy of weights or as a model; use another model_seq_id"
                )
        except Exception as raised:
            error = as_tinsmith_error(raised)
            await self._futures.fail(request_id, error.message, error.category)
            return request_id
        if session.failure is not None:
            await self._catalog.sessions.update(session_id, failure=None)  # its client goes on
        self._registry.add(run)
        scheduler = self._registry.scheduler_of(run)
        scheduler.open_lane(model_id, owner)
        scheduler.submit(Operation(request_id, model_id, 0, task))
        return request_id

    def _check_spec(self, spec: LoraSpec) -> None:
        if spec.rank > self._max_rank:
            raise InvalidInput(f"rank {spec.rank} is over this server's MAX_LORA_RANK of {self._max_rank}")
        if not (spec.train_attn or spec.train_mlp or spec.train_unembed):
            raise InvalidInput("nothing to train: set train_attn, train_mlp or train_unembed")


def model_id_of(session_id: str, model_seq_id: int) -> str:
    """The id of a session's model, which is also its training run's."""
    # The SDK derives the id of a model created from a checkpoint itself, in exactly this form.
    return f"{session_id}:train:{model_seq_id}"


def _check_optimizer(config: OptimizerConfig | None) -> None:
    if config is not None and config.type != "adamw":
        raise InvalidInput(f"optimizer {config.type!r} is not supported here; use adamw")


def _check_base(checkpoint: CheckpointRecord, base_model: str | None) -> None:
    if base_model is not None and base_model != checkpoint.base_model:
        raise InvalidInput(
            f"{checkpoint.path} was trained on {checkpoint.base_model}, not on {base_model}; leave base_model out"
        )


def spec_of(checkpoint: CheckpointRecord) -> LoraSpec:
    """The adapter's shape that a checkpoint was saved with."""
    return LoraSpec(
        rank=checkpoint.rank,
        alpha=checkpoint.alpha,
        train_attn=checkpoint.train_attn,
        train_mlp=checkpoint.train_mlp,
        train_unembed=checkpoint.train_unembed,
    )


def new_run(
    owner: str,
    session_id: str,
    model_id: str,
    base_model: str,
    spec: LoraSpec,
    user_metadata: Mapping[str, Any] | None,
) -> RunRecord:
    """The record of a run that begins now."""
    now = datetime.now(UTC)
    return RunRecord(
        id=model_id,
        session_id=session_id,
        owner=owner,
        base_model=base_model,
        rank=spec.rank,
        alpha=spec.alpha,
        train_attn=spec.train_attn,
        train_mlp=spec.train_mlp,
        train_unembed=spec.train_unembed,
        created_at=now,
        last_request_at=now,
        user_metadata=as_text(user_metadata),
    )


def as_text(metadata: Mapping[str, Any] | None) -> dict[str, str] | None:
    """User metadata as listings return it: text to text."""
    return None if metadata is None else {key: str(value) for key, value in metadata.items()}
