"""Promises and polls (spec section 4)."""

from typing import Literal

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
