"""Prometheus metrics of the scheduler."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class SchedulerMetrics:
    """What waits, and what the passes do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queued = Gauge("tinsmith_train_queued_operations", "Operations that wait", registry=registry)
        self.queued_tokens = Gauge(
            "tinsmith_train_queued_tokens", "Tokens of passes that wait, parts included", registry=registry
        )
        self.lanes = Gauge("tinsmith_train_lanes", "Models that are loaded", registry=registry)
        self.gaps = Counter(
            "tinsmith_train_lane_gaps", "Times a lane went on without a missing operation", registry=registry
        )
        self.refused = Counter(
            "tinsmith_train_refused_operations",
            "Submissions over the bound of a model, an owner or the service",
            ["scope"],
            registry=registry,
        )
        self.task_seconds = Histogram(
            "tinsmith_train_task_seconds", "Seconds of optimizer steps, saves and loads", registry=registry
        )
        self._pass_seconds = Histogram(
            "tinsmith_train_pass_seconds", "Seconds of a packed forward_backward", registry=registry
        )
        self._pass_models = Histogram(
            "tinsmith_train_pass_operations",
            "Operations, or parts of long ones, merged into one packed forward_backward",
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self._pass_tokens = Histogram(
            "tinsmith_train_pass_tokens",
            "Tokens of one packed forward_backward",
            registry=registry,
            buckets=(64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
        )
        self._tokens = Counter("tinsmith_train_tokens", "Tokens trained on", registry=registry)

    def observe_pass(self, operations: int, tokens: int, seconds: float) -> None:
        """Count one packed pass."""
        self._pass_models.observe(operations)
        self._pass_tokens.observe(tokens)
        self._pass_seconds.observe(seconds)
        self._tokens.inc(tokens)
