"""What the scheduler runs: one operation per promise, in the order of its model's `seq_id`s."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tinsmith_common.catalog import Usage
from tinsmith_common.errors import TinsmithError
from tinsmith_common.futures import JSON, PROTOBUF
from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.engine.types import ForwardBackward, ForwardBackwardResult


@dataclass(frozen=True)
class Pass:
    """A forward_backward, merged with those of other models into one packed batch."""

    item: ForwardBackward
    encode: Callable[[ForwardBackwardResult], bytes]
    media_type: str = PROTOBUF

    @property
    def tokens(self) -> int:
        """Length of the packed row it needs."""
        return sum(datum.tokens.size for datum in self.item.datums)


@dataclass(frozen=True)
class Task:
    """Anything else a model does: `run` answers the payload of the promise."""

    run: Callable[[TrainBackend], Awaitable[bytes]]
    media_type: str = JSON


@dataclass(frozen=True)
class Rejected:
    """A submission that cannot run. It fails in its turn, because its `seq_id` counts as used."""

    error: TinsmithError


@dataclass(frozen=True)
class Operation:
    """One step of a lane. `usage` is counted when it ends well."""

    request_id: str
    model_id: str
    seq_id: int
    work: Pass | Task | Rejected
    usage: Usage | None = None
