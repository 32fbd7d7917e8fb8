"""What an operation waits for, in words for whoever polls."""

from collections.abc import Iterable

from tinsmith_common.futures import QueueState
from tinsmith_train.scheduler.lanes import Lane


def describe_wait(lane: Lane, seq_id: int, others: Iterable[Lane]) -> QueueState:
    """Of an operation that waits in `lane`: what must arrive, or run, before it.

    Others are told of by their tokens only.
    """
    missing = lane.missing_before(seq_id)
    if missing is not None:
        reason = f"it waits for seq_id {missing} of this model, which has not arrived"
        return QueueState("paused_capacity", reason)
    ahead = lane.ahead_of(seq_id)
    elsewhere = sum(other.waiting_tokens for other in others if other is not lane and other.ready)
    parts: list[str] = []
    if ahead:
        tokens = sum(operation.tokens for operation in ahead)
        parts.append(f"{len(ahead)} earlier operations of this model with {tokens:,} tokens run first")
    if elsewhere:
        parts.append(f"other models have {elsewhere:,} tokens waiting and take turns with it")
    if not parts:
        return QueueState("active", "it is next")
    return QueueState("paused_capacity" if elsewhere else "active", "; ".join(parts))
