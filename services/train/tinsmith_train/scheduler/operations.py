"""What the scheduler runs: one operation per promise, in the order of its model's `seq_id`s."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

from tinsmith_common.catalog import Usage
from tinsmith_common.errors import TinsmithError
from tinsmith_common.futures import JSON, PROTOBUF
from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.engine.types import Datum, ForwardBackward, ForwardBackwardResult, PassPart
from tinsmith_train.scheduler.admission import Ticket

TASK_COST = 256
"""Tokens that an optimizer step, save or load counts as when turns are given out."""


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
    """One step of a lane. `usage` is counted when it ends well; `ticket` is the room it takes up until then."""

    request_id: str
    model_id: str
    seq_id: int
    work: Pass | Task | Rejected
    usage: Usage | None = None
    ticket: Ticket | None = field(default=None, compare=False)

    @property
    def tokens(self) -> int:
        """Of a pass; 0 for anything else."""
        return self.work.tokens if isinstance(self.work, Pass) else 0


@dataclass(frozen=True)
class Portion:
    """What a lane gives to one cycle: an operation, or the part `number` (from 0) of `count` of a long pass."""

    operation: Operation
    part: PassPart | None = None
    number: int = 0
    count: int = 1

    @property
    def cost(self) -> int:
        """What it counts as, in tokens."""
        if self.part is not None:
            return self.part.tokens
        return 0 if isinstance(self.operation.work, Rejected) else TASK_COST

    @property
    def is_whole_pass(self) -> bool:
        """Whether it may share a cycle with others of its lane."""
        return self.part is not None and self.count == 1


def portions_of(operation: Operation, part_tokens: int) -> list[Portion]:
    """Cut a pass into parts of at most `part_tokens`; a longer datum is a part of its own.

    The cuts depend on nothing but the pass, as the rounding of its gradient depends on them.
    """
    if not isinstance(operation.work, Pass):
        return [Portion(operation)]
    item = operation.work.item
    cuts = _cuts(item.datums, part_tokens)
    return [
        Portion(operation, _part(operation.request_id, item, first, last), number, len(cuts) - 1)
        for number, (first, last) in enumerate(pairwise(cuts))
    ]


def _cuts(datums: tuple[Datum, ...], part_tokens: int) -> list[int]:
    cuts, filled = [0], 0
    for index, datum in enumerate(datums):
        if index > cuts[-1] and filled + datum.tokens.size > part_tokens:
            cuts.append(index)
            filled = 0
        filled += datum.tokens.size
    return [*cuts, len(datums)]


def _part(pass_id: str, item: ForwardBackward, first: int, last: int) -> PassPart:
    tokens = sum(datum.tokens.size for datum in item.datums[first:last])
    return PassPart(pass_id, first, last, tokens, item if first == 0 else None)
