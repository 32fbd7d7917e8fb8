"""Figures of the sample service for Prometheus."""

from collections.abc import Callable, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tinsmith_sample.engines.base import SampleResult, SampleSpec

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

EngineStats = Callable[[], Mapping[str, Mapping[str, float]]]
"""Figures of every engine, by model."""


class TokenMetrics:
    """What the prompts of all requests cost, and how soon their first token came, whatever their protocol."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._prompt = Counter(
            "tinsmith_prompt_tokens",
            "Prompt tokens of requests that ended well: computed, or cached by the engine from earlier ones",
            ["model", "source"],
            registry=registry,
        )
        self._first = Histogram(
            "tinsmith_first_token_seconds",
            "Seconds from a request's arrival to its first token",
            ["model"],
            registry=registry,
            buckets=_LATENCY_BUCKETS_S,
        )

    def prompt(self, model: str, tokens: int, cached: int) -> None:
        """Count a prompt, of whose tokens some were `cached`."""
        self._prompt.labels(model, "computed").inc(tokens - cached)
        self._prompt.labels(model, "cached").inc(cached)

    def first_token(self, model: str, seconds: float) -> None:
        """Count a request whose first token has come."""
        self._first.labels(model).observe(max(0.0, seconds))


class SampleMetrics:
    """Requests waiting and finished, tokens sampled, and what the engines hold."""

    def __init__(self, registry: CollectorRegistry, engine_stats: EngineStats, tokens: TokenMetrics) -> None:
        self._tokens = tokens
        self.queue = Gauge(
            "tinsmith_sample_queue_length", "asample requests accepted and not finished", registry=registry
        )
        self.finished = Counter(
            "tinsmith_sample_requests", "asample requests finished", ["model", "outcome"], registry=registry
        )
        self.cancelled = Counter(
            "tinsmith_sample_cancelled", "asample requests given up by their client", registry=registry
        )
        self._sampled = Counter("tinsmith_sample_tokens", "Tokens sampled", ["model"], registry=registry)
        self.seconds = Histogram(
            "tinsmith_sample_seconds",
            "Seconds from submission to result",
            ["model"],
            registry=registry,
            buckets=_LATENCY_BUCKETS_S,
        )
        registry.register(_EngineCollector(engine_stats))

    def done(self, model: str, spec: SampleSpec, result: SampleResult, arrived_at: datetime) -> None:
        """Count a sample that ended well; `arrived_at` in UTC."""
        self.finished.labels(model, "done").inc()
        self._sampled.labels(model).inc(sum(len(item.tokens) for item in result.completions))
        self._tokens.prompt(model, len(spec.prompt), min(result.cached_tokens, len(spec.prompt)))
        if result.first_token_at is not None:
            self._tokens.first_token(model, result.first_token_at - arrived_at.timestamp())


class InferenceMetrics:
    """The same for requests of the OpenAI and Anthropic protocols, by base model."""

    def __init__(self, registry: CollectorRegistry, prompts: TokenMetrics) -> None:
        self.prompts = prompts
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
