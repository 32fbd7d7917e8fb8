"""The one way in which an operation enters a lane: promise first, then its turn."""

from collections.abc import Callable
from datetime import UTC, datetime

from tinsmith_common.catalog import Catalog, RunRecord, Usage, UsageKind
from tinsmith_common.errors import InvalidInput
from tinsmith_common.futures import FutureStore, PromiseKind
from tinsmith_train.scheduler.admission import Admission, Ticket
from tinsmith_train.scheduler.operations import Operation, Pass, Rejected, Task
from tinsmith_train.scheduler.scheduler import as_tinsmith_error
from tinsmith_train.services.registry import ModelRegistry


class Submissions:
    """Turns well addressed submissions into promises. Whatever is wrong with one becomes its result."""

    def __init__(
        self, registry: ModelRegistry, futures: FutureStore, catalog: Catalog, admission: Admission
    ) -> None:
        self._registry = registry
        self._futures = futures
        self._catalog = catalog
        self._admission = admission

    async def submit(
        self,
        owner: str,
        model_id: str,
        seq_id: int,
        kind: PromiseKind,
        build: Callable[[], Pass | Task],
    ) -> str:
        """Queue an operation of a loaded model and answer its request id.

        `build` validates the body; what it raises fails the operation in its turn. Repeating a
        (`model_id`, `seq_id`) answers the same promise and runs nothing. Raises `Overloaded` when too much waits.
        """
        request_id = f"{model_id}:{seq_id}"
        if not await self._is_of(owner, model_id):
            # It fails below, under a name that keeps it from taking the place of the model's own operations.
            request_id = f"{owner}/{request_id}"
        work, ticket = self._admit(owner, model_id, seq_id, _build(build))
        queued = False
        try:
            submission = await self._futures.submit(request_id, kind, owner)
            if submission.created:
                queued = await self._queue(owner, model_id, seq_id, request_id, work, ticket)
        finally:
            if ticket is not None and not queued:
                ticket.release()
        return request_id

    def _admit(
        self, owner: str, model_id: str, seq_id: int, work: Pass | Task | Rejected
    ) -> tuple[Pass | Task | Rejected, Ticket | None]:
        """Room for an operation that is not here yet. Raises `Overloaded`, before there is a promise."""
        run = self._registry.find(owner, model_id)
        if run is None:
            return work, None
        scheduler = self._registry.scheduler_of(run)
        if scheduler.knows(model_id, seq_id):
            return work, None
        tokens = work.tokens if isinstance(work, Pass) else 0
        incomplete = scheduler.is_incomplete(model_id)
        try:
            return work, self._admission.admit(owner, model_id, tokens, incomplete=incomplete)
        except InvalidInput as error:
            return Rejected(error), self._admission.admit_failed(owner, model_id)

    async def _queue(
        self,
        owner: str,
        model_id: str,
        seq_id: int,
        request_id: str,
        work: Pass | Task | Rejected,
        ticket: Ticket | None,
    ) -> bool:
        """Put an operation into its lane, or fail its promise. No pause before that, in which the lane could close."""
        run = self._registry.find(owner, model_id)
        if run is None:
            await self._fail(
                request_id,
                f"model {model_id} is not loaded: its session ended, its worker was lost or the server restarted; "
                "continue from a saved state with create_training_client_from_state",
            )
            return False
        if not self._registry.scheduler_of(run).submit(_operation(request_id, run, seq_id, work, ticket)):
            await self._fail(
                request_id,
                f"seq_id {seq_id} of {model_id} has had its turn, or came so late that it was given up; "
                "submit it again with a later one",
            )
            return False
        if self._registry.should_note_use(model_id):
            await self._catalog.runs.update(model_id, last_request_at=datetime.now(UTC))
        return True

    async def _is_of(self, owner: str, model_id: str) -> bool:
        if self._registry.find(owner, model_id) is not None:
            return True
        run = await self._catalog.runs.get(model_id)
        return run is not None and run.owner == owner

    async def _fail(self, request_id: str, message: str) -> None:
        await self._futures.fail(request_id, message, InvalidInput.category)


def _build(build: Callable[[], Pass | Task]) -> Pass | Task | Rejected:
    try:
        return build()
    except Exception as error:
        return Rejected(as_tinsmith_error(error))


def _operation(
    request_id: str, run: RunRecord, seq_id: int, work: Pass | Task | Rejected, ticket: Ticket | None
) -> Operation:
    usage = None
    if isinstance(work, Pass):
        usage = Usage(run.session_id, run.base_model, {UsageKind.TRAINING: work.tokens})
    return Operation(request_id, run.id, seq_id, work, usage, ticket)
