"""Losses that clients upload: checked, stored with their session, found again by the training operations."""

from datetime import UTC, datetime

from tinsmith_common.catalog import Catalog, CustomLossRecord
from tinsmith_common.errors import InvalidInput, NotFound
from tinsmith_common.futures import FutureStore, PromiseKind
from tinsmith_common.wire.custom_losses import (
    CreateCustomLossRequest,
    CreateCustomLossResult,
    CustomLossDefinition,
)
from tinsmith_train.engine.custom_loss.graph import LossGraph, read_graph
from tinsmith_train.scheduler.scheduler import as_tinsmith_error


class CustomLossService:
    """The custom losses of all sessions."""

    def __init__(self, futures: FutureStore, catalog: Catalog) -> None:
        self._futures = futures
        self._catalog = catalog

    async def create(self, owner: str, body: CreateCustomLossRequest) -> str:
        """Store a loss. Answers the request id; a graph that is not allowed fails the promise."""
        session = await self._catalog.sessions.get(body.session_id)
        if session is None or session.owner != owner:
            raise NotFound(f"no session {body.session_id}; create one first")
        if session.closed_at is not None:
            raise InvalidInput(f"session {body.session_id} has ended; create a new one")
        loss_id = f"{body.session_id}:loss:{body.custom_loss_seq_id}"
        submission = await self._futures.submit(loss_id, PromiseKind.CREATE_CUSTOM_LOSS, owner)
        if submission.created:
            try:
                await self._store(loss_id, owner, body)
            except Exception as raised:
                error = as_tinsmith_error(raised)
                await self._futures.fail(loss_id, error.message, error.category)
        return loss_id

    async def find(self, owner: str, session_id: str, loss_id: object) -> LossGraph:
        """The graph of that id in that session. Raises `InvalidInput`."""
        record = await self._catalog.custom_losses.get(loss_id) if isinstance(loss_id, str) else None
        if record is None or (record.owner, record.session_id) != (owner, session_id):
            raise InvalidInput(
                f"no custom loss {loss_id!r} in this session: create_custom_loss gives the loss_id that "
                "loss_fn_config needs"
            )
        return _read(CustomLossDefinition.model_validate(record.definition))

    async def delete_expired(self) -> int:
        """Remove the losses of sessions that have ended. Returns how many."""
        return await self._catalog.custom_losses.delete_of_closed_sessions()

    async def _store(self, loss_id: str, owner: str, body: CreateCustomLossRequest) -> None:
        _read(body)
        definition = CustomLossDefinition(inputs=body.inputs, graph=body.graph)
        await self._catalog.custom_losses.create(
            CustomLossRecord(
                id=loss_id,
                session_id=body.session_id,
                owner=owner,
                name=body.name,
                created_at=datetime.now(UTC),
                definition=definition.model_dump(mode="json"),
            )
        )
        result = CreateCustomLossResult(loss_id=loss_id)
        await self._futures.resolve(loss_id, result.model_dump_json().encode())


def _read(definition: CustomLossDefinition) -> LossGraph:
    inputs = [(item.name, item.rank) for item in definition.inputs]
    return read_graph(inputs, [node.model_dump() for node in definition.graph.nodes])
