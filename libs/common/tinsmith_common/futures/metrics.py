"""How long requests wait around the engine, for Prometheus."""

from datetime import datetime

from prometheus_client import CollectorRegistry, Histogram

from tinsmith_common.futures.types import Work

_BUCKETS_S = (
    0.0005,
    0.001,
    0.0015,
    0.002,
    0.0025,
    0.0035,
    0.005,
    0.0075,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
)


class WorkMetrics:
    """What a request spends before the engine, in it and after it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, ["request_type"], registry=registry, buckets=_BUCKETS_S)

        self._before = seconds(
            "tinsmith_request_to_engine_seconds",
            "Seconds from a request's last byte to the engine's start on it",
        )
        self._engine = seconds("tinsmith_engine_seconds", "Seconds a request was in the engine")
        self._after = seconds(
            "tinsmith_engine_to_result_seconds", "Seconds from the engine's end to the committed result"
        )

    def observe(self, kind: str, received_at: datetime, work: Work, committed_at: datetime) -> None:
        """Count one request that the engine had."""
        self._before.labels(kind).observe(_seconds(received_at, work.started_at))
        self._engine.labels(kind).observe(_seconds(work.started_at, work.computed_at))
        self._after.labels(kind).observe(_seconds(work.computed_at, committed_at))


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())  # the wall clock may be set back meanwhile
