"""What a promise is, without any storage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from tinsmith_common.catalog.records import Usage
from tinsmith_common.errors import Category

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

Service = Literal["train", "sample"]


class PromiseKind(StrEnum):
    """Kinds of asynchronous work, in the words of the `X-Tinker-Request-Type` header."""

    CREATE_MODEL = "CreateModel"
    FORWARD_BACKWARD = "ForwardBackward"
    OPTIM_STEP = "OptimStep"
    SAVE_WEIGHTS = "SaveWeights"
    SAVE_WEIGHTS_FOR_SAMPLER = "SaveWeightsForSampler"
    SAVE_WEIGHTS_EXTERNAL = "SaveWeightsExternal"
    LOAD_WEIGHTS = "LoadWeights"
    SAMPLE = "Sample"
    CREATE_CUSTOM_LOSS = "CreateCustomLoss"
    UNLOAD_MODEL = "UnloadModel"


@dataclass(frozen=True)
class Outcome:
    """How a promise ended: a payload, or an error with who can mend it.

    `kind` is the promise's, and says which message a protobuf payload is.
    """

    payload: bytes = b""
    media_type: str = JSON
    error: str | None = None
    category: Category = "unknown"
    kind: PromiseKind | None = field(default=None, compare=False)


@dataclass(frozen=True)
class QueueState:
    """Whether unfinished work goes on or waits, and for what, in words for the client's user."""

    state: Literal["active", "paused_capacity", "paused_rate_limit"] = "active"
    reason: str | None = None


@dataclass(frozen=True)
class Submission:
    """The promise given for a request. `created` is False when the same request came before."""

    request_id: str
    created: bool


@dataclass(frozen=True)
class PendingPromise:
    """Unfinished work found in the store, with the request body it was submitted with."""

    request_id: str
    kind: PromiseKind
    owner: str
    request: bytes


@dataclass(frozen=True)
class Work:
    """When the engine had a request, and what it used; UTC."""

    started_at: datetime
    computed_at: datetime
    usage: Usage | None = None


@dataclass(frozen=True)
class Span:
    """What happened to one request, and when.

    received_at:  the whole request was here.
    started_at:   the engine had it; None when it never came so far.
    computed_at:  the engine was done with it.
    stored_at:    its result was written; None while it is pending.
    """

    request_id: str
    kind: PromiseKind
    state: Literal["pending", "done", "failed", "cancelled"]
    received_at: datetime
    started_at: datetime | None = None
    computed_at: datetime | None = None
    stored_at: datetime | None = None
    error: str | None = None
    category: str | None = None
    quantities: Mapping[str, int] = field(default_factory=dict[str, int])
