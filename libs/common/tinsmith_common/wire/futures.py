"""Promises and polls (spec section 4)."""

from typing import Annotated, Literal

from pydantic import Field

from tinsmith_common.errors import Category
from tinsmith_common.wire.base import WireModel


class Promise(WireModel):
    """Answer of every endpoint whose work is done later."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class RetrieveFutureRequest(WireModel):
    """One long poll."""

    request_id: str
    allow_metadata_only: bool = False


class TryAgain(WireModel):
    """Nothing yet: poll again at once."""

    type: Literal["try_again"] = "try_again"
    request_id: str
    queue_state: Literal["active", "paused_capacity", "paused_rate_limit"] = "active"
    queue_state_reason: str | None = None


class FailedFuture(WireModel):
    """The operation failed; `category` says who can mend it."""

    error: str
    category: Category


class CompleteMetadata(WireModel):
    """The result is there and large, in bytes: the client makes room and asks once more."""

    status: Literal["complete_metadata"] = "complete_metadata"
    response_payload_size: int


class CancelFutureRequest(WireModel):
    """The client does not wait for this any more."""

    request_id: str


class SamplingSessionTarget(WireModel):
    """The samples of one sampling client; clones of a client in other processes have numbers."""

    type: Literal["sampling_session"]
    sampling_session_id: str = Field(min_length=1)
    cloned_sampler_id: int = Field(default=0, ge=0)


class RetrieveFuturesRequest(WireModel):
    """One poll for all samples of a client. `timeout` in seconds; absent: as long as the server holds polls."""

    target: SamplingSessionTarget
    prev_cursor: int = Field(default=0, ge=0, le=2**63 - 1)
    timeout: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    retrieved_request_ids: list[str] = Field(default_factory=list[str], max_length=10_000)


class FinishedCompletion(WireModel):
    """A result of that many bytes can be fetched."""

    state: Literal["finished"] = "finished"
    request_id: str
    response_payload_uncompressed_size: int


class FailedCompletion(WireModel):
    """An error can be fetched."""

    state: Literal["failed"] = "failed"
    request_id: str


class RetrieveFuturesResponse(WireModel):
    """What ended after the request's cursor, and the cursor to ask with next."""

    completions: list[Annotated[FinishedCompletion | FailedCompletion, Field(discriminator="state")]]
    cursor: int
