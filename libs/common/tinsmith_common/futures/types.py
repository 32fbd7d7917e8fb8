"""What a promise is, without any storage."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

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
