"""Ordered lanes: one per model, released strictly by `seq_id`."""

import time
from dataclasses import dataclass

from tinsmith_train.scheduler.operations import Operation, Pass


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
    """Holds what arrived for one model until everything before it has arrived too."""

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self.closing = False
        self.farewell: Farewell | None = None
        self._next_seq = 0
        self._waiting: dict[int, Operation] = {}
        self._last_arrival = time.monotonic()

    def add(self, operation: Operation) -> bool:
        """Keep an operation for its turn. False when its turn has passed or is taken."""
        if operation.seq_id < self._next_seq or operation.seq_id in self._waiting:
            return False
        self._waiting[operation.seq_id] = operation
        self._last_arrival = time.monotonic()
        return True

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
        """Whether the next operation in order has arrived."""
        return self._next_seq in self._waiting

    @property
    def waiting(self) -> int:
        """How many operations have arrived and not been taken."""
        return len(self._waiting)

    def take(self, token_budget: int) -> list[Operation]:
        """The next operation and, if it is a pass, the passes right behind it within the budget.

        Passes in a row see the same weights and add up their gradients, so they may share a batch.
        """
        taken: list[Operation] = []
        tokens = 0
        while self.ready:
            head = self._waiting[self._next_seq]
            if taken and not isinstance(head.work, Pass):
                break
            if isinstance(head.work, Pass):
                tokens += head.work.tokens
                if taken and tokens > token_budget:
                    break
            taken.append(self._waiting.pop(self._next_seq))
            self._next_seq += 1
            if not isinstance(head.work, Pass):
                break
        return taken

    def drain(self) -> list[Operation]:
        """Everything that arrived, in order, whether or not something before it is missing."""
        drained = [self._waiting[seq_id] for seq_id in sorted(self._waiting)]
        self._waiting.clear()
        return drained
