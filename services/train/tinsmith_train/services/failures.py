"""What makes a session fail: a model it lost, or an error after which its client fell silent."""

from collections.abc import Sequence

from tinsmith_common.catalog import Catalog, RunRecord, SessionRecord
from tinsmith_common.errors import TinsmithError
from tinsmith_common.futures import FutureStore, PromiseKind, Span
from tinsmith_common.wire.search import (
    FailedRequest,
    FailedSamplingSession,
    FailedStatus,
    FailedTrainingRun,
)

RESTARTED = "the train service restarted before this ran; continue from the last saved state"


class SessionFailures:
    """Keeps failures with their sessions, in the words of the protocol."""

    def __init__(self, catalog: Catalog, futures: FutureStore) -> None:
        self._catalog = catalog
        self._futures = futures

    async def models_lost(self, model_ids: Sequence[str], error: TinsmithError) -> None:
        """Their worker died, and what was not saved with it."""
        for model_id in model_ids:
            if (run := await self._catalog.runs.get(model_id)) is not None:
                await self._lose(run, error.message)

    async def service_restarted(self) -> None:
        """Models lived in the process before this one."""
        for run in await self._catalog.runs.trainable():
            await self._lose(run, RESTARTED)

    async def note_last_error(self, session: SessionRecord) -> None:
        """Of a session that fell silent: if the last that happened in it was an error, that ended it."""
        last = await self._futures.spans.last(session.owner, session.id)
        if last is not None and last.state == "failed":
            await self._fail(session.id, last.category, last.error or "", await self._reason(session, last))

    async def _lose(self, run: RunRecord, message: str) -> None:
        await self._catalog.runs.update(run.id, corrupted=True)
        await self._fail(run.session_id, "server", message, FailedTrainingRun(training_run_id=run.id))

    async def _reason(
        self, session: SessionRecord, span: Span
    ) -> FailedRequest | FailedTrainingRun | FailedSamplingSession:
        """The whole model or sampler if it never worked, else the one request."""
        subject, _, seq_id = span.request_id.rpartition(":")
        if seq_id == "0" and span.kind in (PromiseKind.CREATE_MODEL, PromiseKind.LOAD_WEIGHTS):
            if await self._catalog.runs.get(subject) is not None:
                return FailedTrainingRun(training_run_id=subject)
        elif span.kind == PromiseKind.SAMPLE and await self._never_sampled(session, subject):
            return FailedSamplingSession(sampling_session_id=subject)
        return FailedRequest(request_id=span.request_id, request_type=span.kind)

    async def _never_sampled(self, session: SessionRecord, sampler_id: str) -> bool:
        known = await self._catalog.sampling_sessions.get(sampler_id) is not None
        return known and not await self._futures.spans.any_done(session.owner, session.id, sampler_id)

    async def _fail(
        self,
        session_id: str,
        category: str | None,
        message: str,
        reason: FailedRequest | FailedTrainingRun | FailedSamplingSession,
    ) -> None:
        whose = "user" if category == "user" else "internal"
        status = FailedStatus(category=whose, message=message, reason=reason)
        await self._catalog.sessions.fail(session_id, status.model_dump(mode="json"))
