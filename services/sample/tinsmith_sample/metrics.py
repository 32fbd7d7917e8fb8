"""Figures of the sample service for Prometheus."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

EngineStats = Callable[[], Mapping[str, Mapping[str, float]]]
"""Figures of every engine, by model."""


class SampleMetrics:
    """Requests waiting and finished, tokens sampled, and what the engines hold."""

    def __init__(self, registry: CollectorRegistry, engine_stats: EngineStats) -> None:
        self.queue = Gauge(
            "tinsmith_sample_queue_length", "asample requests accepted and not finished", registry=registry
        )
        self.finished = Counter(
            "tinsmith_sample_requests", "asample requests finished", ["model", "outcome"], registry=registry
        )
        self.cancelled = Counter(
            "tinsmith_sample_cancelled", "asample requests given up by their client", registry=registry
        )
        self.tokens = Counter("tinsmith_sample_tokens", "Tokens sampled", ["model"], registry=registry)
        self.seconds = Histogram(
            "tinsmith_sample_seconds",
            "Seconds from submission to result",
            ["model"],
            registry=registry,
            buckets=_LATENCY_BUCKETS_S,
        )
        registry.register(_EngineCollector(engine_stats))


class InferenceMetrics:
    """The same for requests of the OpenAI and Anthropic protocols, by base model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open = Gauge("tinsmith_inference_open", "Inference requests not finished", registry=registry)
        self.finished = Counter(
            "tinsmith_inference_requests",
            "Inference requests finished",
            ["model", "protocol", "outcome"],
            registry=registry,
        )
        self.tokens = Counter(
            "tinsmith_inference_tokens", "Tokens sampled for them", ["model"], registry=registry
        )
        self.seconds = Histogram(
            "tinsmith_inference_seconds",
            "Seconds from request to last token",
            ["model"],
            registry=registry,
            buckets=_LATENCY_BUCKETS_S,
        )


class _EngineCollector(Collector):
    """Reads the engines when Prometheus asks."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def collect(self) -> list[Metric]:
        """One gauge per figure, labelled with the model."""
        families: dict[str, GaugeMetricFamily] = {}
        for model, figures in self._stats().items():
            for name, value in figures.items():
                family = families.setdefault(
                    name,
                    GaugeMetricFamily(f"tinsmith_engine_{name}", f"{name} of the engine", labels=["model"]),
                )
                family.add_metric([model], value)
        return list(families.values())
