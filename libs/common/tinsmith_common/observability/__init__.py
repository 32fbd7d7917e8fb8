"""Structured logs and Prometheus metrics."""

from tinsmith_common.observability.logs import configure_logging, get_logger
from tinsmith_common.observability.metrics import HttpMetrics

__all__ = ["HttpMetrics", "configure_logging", "get_logger"]
