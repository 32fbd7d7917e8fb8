"""Ordered lanes: one per model, released strictly by `seq_id`."""

import time
from collections import deque
from dataclasses import dataclass

from tinsmith_train.scheduler.operations import Operation, Portion, portions_of


@dataclass(frozen=True)
class Gap:
    """Turns that were given up: `first` to `last`, both counted in."""

    first: int
    last: int


@dataclass(frozen=True)
class Farewell:
    """A promise, and what it is resolved with once the lane is closed and its model freed."""

    request_id: str
    payload: bytes


class Lane:
    """Holds what arrived for one model until everything before it has arrived too.

    part_tokens: up to how many tokens a pass runs in one go.
    begun:       the long pass of which some parts have been taken and some not.
    served:      where the lane's last turn ended, and `busy`: whether it has had work since (see `fairness`).
    """

    def __init__(self, model_id: str, owner: str, part_tokens: int) -> None:
        self.model_id = model_id
        self.owner = owner
        self.closing = False
        self.farewell: Farewell | None = None
        self.begun: Operation | None = None
        self.served = 0.0
        self.busy = False
        self._part_tokens = part_tokens
        self._next_seq = 0
        self._waiting: dict[int, Operation] = {}
        # Of the operation that has begun, or else of the next one once somebody looked at it.
        self._portions: deque[Portion] = deque()
        self._last_arrival = time.monotonic()

    def add(self, operation: Operation) -> bool:
        """Keep an operation for its turn. False when its turn has passed or is taken."""
        if self.knows(operation.seq_id):
            return False
        self._waiting[operation.seq_id] = operation
        self._last_arrival = time.monotonic()
        return True

    def knows(self, seq_id: int) -> bool:
        """Whether an operation of this turn is here, or came too late or had been here."""
        return seq_id < self._next_seq or seq_id in self._waiting

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._waiting or (self.begun is not None and self.begun.seq_id == seq_id)

    @property
    def stalled_since(self) -> float | None:
        """Since when (`time.monotonic`) nothing has arrived while what is here waits for an earlier turn."""
        return self._last_arrival if self._waiting and not self.ready else None

    def skip_gap(self) -> Gap:
        """Give up the missing turns before the first operation that is here. The lane must be stalled."""
        gap = Gap(self._next_seq, min(self._waiting) - 1)
        self._next_seq = gap.last + 1
        return gap

    @property
    def ready(self) -> bool:
        """Whether there is something to run: the next operation in order, or what is left of one that has begun."""
        return self.begun is not None or self._next_seq in self._waiting

    @property
    def waiting(self) -> int:
        """How many operations have arrived and not been taken."""
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of passes that have arrived and not been taken, parts of one that has begun included."""
        left = sum(portion.cost for portion in self._portions) if self.begun is not None else 0
        return left + sum(operation.tokens for operation in self._waiting.values())

    def peek(self) -> Portion:
        """What `take` gives. The lane must be ready."""
        if not self._portions:
            self._portions.extend(portions_of(self._waiting[self._next_seq], self._part_tokens))
        return self._portions[0]

    def take(self) -> Portion:
        """The next operation, or the next part of a long pass. The lane must be ready."""
        portion = self.peek()
        self._portions.popleft()
        if self.begun is None:
            del self._waiting[self._next_seq]
            self._next_seq += 1
        self.begun = portion.operation if self._portions else None
        return portion

    def give_up_begun(self) -> None:
        """Forget what is left of the pass that has begun: it has failed."""
        if self.begun is not None:
            self.begun = None
            self._portions.clear()

    def ahead_of(self, seq_id: int) -> list[Operation]:
        """What is here and comes before this turn, one that has begun included."""
        begun = [] if self.begun is None else [self.begun]
        return begun + [self._waiting[seq] for seq in sorted(self._waiting) if seq < seq_id]

    def missing_before(self, seq_id: int) -> int | None:
        """The first turn before this one of which nothing has arrived."""
        missing = self._next_seq
        while missing in self._waiting:
            missing += 1
        return missing if missing < seq_id else None

    def drain(self) -> list[Operation]:
        """Everything that has not run to its end, in order, whether or not something before it is missing."""
        begun = [] if self.begun is None else [self.begun]
        drained = begun + [self._waiting[seq_id] for seq_id in sorted(self._waiting)]
        self.begun = None
        self._portions.clear()
        self._waiting.clear()
        return drained
