"""Sessions (spec section 3.2)."""

from typing import Any, Literal

from pydantic import Field

from tinsmith_common.wire.base import Metadata, WireModel


class CreateSessionRequest(WireModel):
    """Opens a session."""

    tags: list[str] = Field(default_factory=list[str])
    user_metadata: Metadata | None = None
    sdk_version: str | None = None
    project_id: str | None = None
    display_name: str | None = None


class CreateSessionResponse(WireModel):
    """The new session; messages are logged by the client."""

    session_id: str
    info_message: str | None = None
    warning_message: str | None = None
    type: Literal["create_session"] = "create_session"


class SessionHeartbeatRequest(WireModel):
    """Sent every 10 s by every holder of a session."""

    session_id: str


class SessionHeartbeatResponse(WireModel):
    """Heard."""

    type: Literal["session_heartbeat"] = "session_heartbeat"


class FinishReason(WireModel):
    """Why a client ended its session."""

    type: Literal["success", "errored", "interrupted"]


class FinishSessionRequest(WireModel):
    """Ends a session."""

    reason: FinishReason
    detail: str | None = Field(default=None, max_length=10_000)


class ListSessionsResponse(WireModel):
    """Ids, newest first."""

    sessions: list[str]


class GetSessionResponse(WireModel):
    """One session and what was made in it."""

    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None


class TraceExportResponse(WireModel):
    """State of an export; a `url` of a ready one needs no credential and expires after an hour."""

    status: Literal["pending", "ready", "failed"]
    url: str | None = None
    error: str | None = None
