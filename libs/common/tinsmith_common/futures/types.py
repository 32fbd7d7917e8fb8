"""What a promise is, without any storage."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Outcome:
    """How a promise ended: a payload, or an error with who can mend it."""

    payload: bytes = b""
    media_type: str = JSON
    error: str | None = None
    category: Category = "unknown"


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
class Unfinished:
    """A promise that has not ended, and when its request had arrived."""

    request_id: str
    kind: PromiseKind
    received_at: datetime


@dataclass(frozen=True)
class Work:
    """When the engine had a request, and what it used; UTC."""

    started_at: datetime
    computed_at: datetime
    usage: Usage | None = None
