"""Settings of the sample service."""

from typing import Any, Literal

from pydantic import Field

from tinsmith_common.settings import CommonSettings


class SamplingConfig(CommonSettings):
    """What the sample service can be told, by environment, file (`from_file`) or keyword.

    `sampling_engine_args` reach SGLang by the names of its `ServerArgs` and win over everything else.
    """

    sampling_host: str = "0.0.0.0"  # a service in a container listens on all interfaces
    sampling_port: int = Field(default=8001, ge=1, le=65535)
    sampling_device: Literal["auto", "cpu", "cuda"] = "auto"
    sampling_threads: int | None = Field(
        default=None, ge=1, description="for CPU work; default: half the cores"
    )
    sampling_engine_args: dict[str, Any] = Field(default_factory=dict[str, Any])
    max_resident_adapters: int = Field(default=32, ge=1, description="adapters in host memory at a time")
    adapters_per_batch: int = Field(default=8, ge=1, description="different adapters in one forward pass")
    max_queued_samples: int = Field(
        default=20_000, ge=1, description="asample requests, and as many of inference; more get a 429"
    )
    max_queued_mib: float = Field(
        default=256.0, gt=0, description="bodies of waiting asample requests in all; more get a 429"
    )
    max_running_samples: int | None = Field(
        default=None, ge=1, description="given to an engine at a time; default: its own limit and an eighth"
    )
    replica_timeout_s: float = Field(
        default=6.0,
        ge=0.3,
        description="without a sign of life, after which others take a replica's work over",
    )
    drain_grace_s: float = Field(
        default=30.0, ge=0, description="for running samples to finish after SIGTERM; others are handed back"
    )
    max_prompt_scores: int = Field(
        default=2**18,
        ge=1,
        description="target and alternative tokens of one request, over all its positions",
    )
    engine_start_timeout_s: float = Field(default=600.0, gt=0)
    engine_check_interval_s: float = Field(default=5.0, gt=0)
    adapter_unload_timeout_s: float = Field(default=30.0, gt=0)
