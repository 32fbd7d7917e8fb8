"""Prometheus metrics of the scheduler."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class SchedulerMetrics:
    """What waits, and what the passes do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queued = Gauge("tinsmith_train_queued_operations", "Operations that wait", registry=registry)
        self.gaps = Counter(
            "tinsmith_train_lane_gaps", "Times a lane went on without a missing operation", registry=registry
        )
        self.task_seconds = Histogram(
            "tinsmith_train_task_seconds", "Seconds of optimizer steps, saves and loads", registry=registry
        )
        self._pass_seconds = Histogram(
            "tinsmith_train_pass_seconds", "Seconds of a packed forward_backward", registry=registry
        )
        self._pass_models = Histogram(
            "tinsmith_train_pass_operations",
            "Operations merged into one packed forward_backward",
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self._tokens = Counter("tinsmith_train_tokens", "Tokens trained on", registry=registry)

    def observe_pass(self, operations: int, tokens: int, seconds: float) -> None:
        """Count one packed pass."""
        self._pass_models.observe(operations)
        self._pass_seconds.observe(seconds)
        self._tokens.inc(tokens)
