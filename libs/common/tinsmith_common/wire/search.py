"""Searching sessions (spec section 3.2)."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from tinsmith_common.wire.base import TextMetadata, UtcDatetime, WireModel
from tinsmith_common.wire.sessions import FinishReason


class AssignProjectRequest(WireModel):
    """Moves a session, and what it made, to a project."""

    project_id: str = Field(min_length=1, max_length=200)


class Owners(WireModel):
    """Whose sessions."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: list[str] = Field(default_factory=list[str], max_length=10)


class StatusQuery(WireModel):
    """One status to match; `reasons` narrows `client_finished`."""

    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[str] | None = None


class SearchCursor(WireModel):
    """The last session of the page before."""

    last_created_at: UtcDatetime
    last_session_id: str


class SearchSessionsRequest(WireModel):
    """All conditions hold together, except that `session_id` or `display_name` suffices of those two."""

    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: TextMetadata = Field(default_factory=dict[str, str])
    display_name: str | None = Field(default=None, min_length=1)
    owner: Owners = Owners()
    statuses: Annotated[list[StatusQuery], Field(min_length=1)] | None = None
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SearchCursor | None = None


class ActiveStatus(WireModel):
    """Its client is heard of."""

    type: Literal["active"] = "active"


class ClientFinishedStatus(WireModel):
    """Its client ended it."""

    type: Literal["client_finished"] = "client_finished"
    reason: FinishReason
    detail: str | None = None


class FailedRequest(WireModel):
    """A request after whose failure nothing came."""

    type: Literal["request"] = "request"
    request_id: str
    request_type: str


class FailedTrainingRun(WireModel):
    """A model that could not be made, or was lost."""

    type: Literal["training_run"] = "training_run"
    training_run_id: str


class FailedSamplingSession(WireModel):
    """A sampler that never gave a result."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str


class FailedStatus(WireModel):
    """What made it fail, and who can mend that."""

    type: Literal["failed"] = "failed"
    category: Literal["user", "internal"]
    message: str
    reason: Annotated[FailedRequest | FailedTrainingRun | FailedSamplingSession, Field(discriminator="type")]


SessionStatus = Annotated[ActiveStatus | ClientFinishedStatus | FailedStatus, Field(discriminator="type")]


class SessionSummary(WireModel):
    """One session found. `status` is absent where its client went silent."""

    session_id: str
    created_at: AwareDatetime
    owner: str
    project_id: str
    checkpoints_count: int
    checkpoint_storage_bytes: int
    status: SessionStatus | None = None
    display_name: str | None = None
    user_metadata: dict[str, Any] | None = None


class SearchSessionsResponse(WireModel):
    """A page, newest first; without `next_cursor` it is the last."""

    sessions: list[SessionSummary]
    next_cursor: SearchCursor | None = None
