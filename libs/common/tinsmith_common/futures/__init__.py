"""Durable promises: submitted once, resolved once, polled by anyone who owns them."""

from tinsmith_common.futures.store import FutureStore
from tinsmith_common.futures.types import (
    JSON,
    PROTOBUF,
    Outcome,
    PendingPromise,
    PromiseKind,
    Submission,
)

__all__ = ["JSON", "PROTOBUF", "FutureStore", "Outcome", "PendingPromise", "PromiseKind", "Submission"]
