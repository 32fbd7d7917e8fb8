"""Structured logs and Prometheus metrics."""

from tinsmith_common.observability.logs import configure_logging, get_logger
from tinsmith_common.observability.metrics import HttpMetrics
from tinsmith_common.observability.received import mark_received, received_at, request_scope

__all__ = [
    "HttpMetrics",
    "configure_logging",
    "get_logger",
    "mark_received",
    "received_at",
    "request_scope",
]
