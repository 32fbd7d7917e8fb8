"""Durable promises: submitted once, resolved once, polled by anyone who owns them."""

from tinsmith_common.futures.completions import CLONE_STRIDE, Completion, CompletionBatch, completion_queue
from tinsmith_common.futures.leases import Leases, Others, Pulse
from tinsmith_common.futures.notices import Notices, Topic
from tinsmith_common.futures.store import FutureStore
from tinsmith_common.futures.types import (
    JSON,
    PROTOBUF,
    Outcome,
    PendingPromise,
    PromiseKind,
    QueueState,
    Span,
    Submission,
    Work,
)

__all__ = [
    "CLONE_STRIDE",
    "JSON",
    "PROTOBUF",
    "Completion",
    "CompletionBatch",
    "FutureStore",
    "Leases",
    "Notices",
    "Others",
    "Outcome",
    "PendingPromise",
    "PromiseKind",
    "Pulse",
    "QueueState",
    "Span",
    "Submission",
    "Topic",
    "Work",
    "completion_queue",
]
