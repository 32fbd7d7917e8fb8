"""Metrics of one application. Each app owns its registry, so that two apps in one process stay apart."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class HttpMetrics:
    """Requests by route and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "tinsmith_http_requests", "HTTP requests", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "tinsmith_http_request_seconds",
            "Seconds from request to response",
            ["method", "route"],
            registry=registry,
            buckets=_LATENCY_BUCKETS_S,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
