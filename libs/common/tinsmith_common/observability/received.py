"""When the request that is being handled had arrived."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

# Of one request each: a context variable is how it reaches the stores without an argument in every signature.
_arrival: ContextVar[datetime | None] = ContextVar("arrival", default=None)


@contextmanager
def request_scope() -> Generator[None, None, None]:
    """Around the handling of one request, which has not arrived whole yet."""
    token = _arrival.set(None)
    try:
        yield
    finally:
        _arrival.reset(token)


def mark_received() -> None:
    """The request's last byte is here."""
    _arrival.set(datetime.now(UTC))


def received_at() -> datetime:
    """When the current request was here in whole; now, outside of one."""
    return _arrival.get() or datetime.now(UTC)
