"""Sampling by one request and its answer, and sampling sessions without a client session."""

import json
import secrets
from typing import Any

from pydantic import ValidationError

from tinsmith_common.errors import EngineFailure, InvalidInput, TookTooLong
from tinsmith_common.futures import FutureStore, Outcome
from tinsmith_common.http.errors import describe_validation
from tinsmith_common.http.legacy import negotiate
from tinsmith_common.wire.legacy import CreateSamplingClientRequest, SampleTarget
from tinsmith_common.wire.sampling import CreateSamplingSessionRequest
from tinsmith_sample.services.sampling import SamplingService
from tinsmith_sample.services.sessions import SamplingSessions

ANSWER_WITHIN_S = 240.0
"""The gateway gives an answer 300 s."""


class DirectSampling:
    """What older clients ask for, done through sampling sessions and promises."""

    def __init__(
        self,
        sessions: SamplingSessions,
        sampling: SamplingService,
        futures: FutureStore,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self._sessions = sessions
        self._sampling = sampling
        self._futures = futures
        self._answer_within_s = answer_within_s

    async def create(self, owner: str, body: CreateSamplingClientRequest) -> str:
        """Open a sampling session, in a client session if one is named. Answers its id."""
        if body.session_id is None:
            return await self._sessions.shared(owner, body.model_path, body.base_model)
        request = CreateSamplingSessionRequest.model_validate(body.model_dump())
        return await self._sessions.create(owner, request)

    async def sample(self, owner: str, body: bytes, accept: str) -> tuple[bytes, str]:
        """Sample, wait, and answer the result with its media type. Raises what the promise failed with."""
        promise = await self._sampling.submit(owner, await self._addressed(owner, body))
        outcome = await self._futures.wait(promise.request_id, owner, self._answer_within_s)
        if outcome is None:
            raise TookTooLong(
                f"no answer within {self._answer_within_s:.0f} s; send asample and poll for its result"
            )
        if outcome.error is not None:
            raise _failure(outcome)
        return await negotiate(outcome, accept)

    async def _addressed(self, owner: str, body: bytes) -> bytes:
        """The body as an `asample` that names its sampling session and `seq_id`."""
        try:
            target = SampleTarget.model_validate_json(body)
        except ValidationError as error:
            raise InvalidInput(describe_validation(error)) from error
        session_id = target.sampling_session_id
        if session_id is None:
            session_id = await self._sessions.shared(owner, target.model_path, target.base_model)
        # Without a number of its own a request is never the repetition of another one.
        seq_id = secrets.randbits(62) if target.seq_id is None else target.seq_id
        values: dict[str, Any] = json.loads(body)
        return json.dumps(values | {"sampling_session_id": session_id, "seq_id": seq_id}).encode()


def _failure(outcome: Outcome) -> InvalidInput | EngineFailure:
    message = outcome.error or ""
    return InvalidInput(message) if outcome.category == "user" else EngineFailure(message)
