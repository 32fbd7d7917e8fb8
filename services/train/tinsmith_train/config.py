"""Settings of the train service."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tinsmith_common.settings import CommonSettings

ANY_MODEL = "*"
"""In `TOKEN_PRICES`: every base model that is not named there."""


class TokenPrices(BaseModel):
    """USD per million tokens, by what is done with them; what is left out has no price."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    prefill: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    prefill_cached: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    sampled: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class TrainingConfig(CommonSettings):
    """What the train service can be told, by environment, file (`from_file`) or keyword."""

    training_host: str = "0.0.0.0"
    training_port: int = Field(default=8000, ge=1, le=65535)
    ray_address: str | None = Field(default=None, description="of a running cluster; default: start one here")
    ray_namespace: str = "tinsmith"
    allow_partial_batches: bool = False
    train_device: Literal["auto", "cpu", "cuda"] = "auto"
    train_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    train_threads: int | None = Field(default=None, ge=1, description="CPU threads; default: all cores")
    tokens_per_pass: int | None = Field(
        default=None,
        ge=128,
        description="tokens packed into one row; default: 1024 on a CPU, 8192 and more on a GPU",
    )
    full_fine_tune_models: int = Field(
        default=0,
        ge=0,
        description="models of a base that may train all weights (rank 0) at a time, 16 bytes a parameter each",
    )
    tokens_per_cycle: int | None = Field(
        default=None,
        ge=128,
        description="tokens that run together before anybody's turn is looked at again; default: one row",
    )
    max_queued_operations_per_model: int = Field(default=1024, ge=1)
    max_queued_operations_per_account: int = Field(default=4096, ge=1)
    max_queued_operations_per_service: int = Field(default=16_384, ge=1)
    max_queued_tokens_per_model: int = Field(default=8 * 2**20, ge=1)
    max_queued_tokens_per_account: int = Field(default=16 * 2**20, ge=1)
    max_queued_tokens_per_service: int = Field(default=64 * 2**20, ge=1)
    lane_gap_s: float = Field(
        default=600.0, gt=0, description="without an arrival, until a missing operation's turn is given up"
    )
    session_timeout_s: float = Field(default=1800.0, ge=30, description="without a heartbeat")
    public_url: str | None = Field(
        default=None,
        description="address in download URLs; default: the one each client used, which a proxy may hide",
    )
    maintenance_interval_s: float = Field(default=30.0, gt=0)
    trace_retention_s: float = Field(default=7 * 86400.0, ge=600, description="of what trace exports show")
    history_retention_s: float = Field(default=30 * 86400.0, ge=600, description="of the curves of runs")
    token_prices: dict[str, TokenPrices] = Field(
        default_factory=dict[str, TokenPrices], description="by base model, or * for all others"
    )
    storage_price_usd_per_gb_month: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    client_batch_polls: bool = Field(default=True, description="clients poll for all their samples at once")
    client_joins_sessions: bool = Field(default=True, description="copies of a client ask for their number")
    client_cancels: bool = Field(default=True, description="clients say which samples they gave up")
    client_zstd: bool = Field(default=True, description="clients compress forward_backward bodies")
    client_chunk_datums: int = Field(default=8192, ge=1, description="datums in one forward_backward body")
    client_chunk_bytes: int | None = Field(
        default=None, ge=1, description="estimated bytes of one such body; default: half of MAX_BODY_MIB"
    )

    @model_validator(mode="after")
    def _chunks_fit_into_a_body(self) -> Self:
        if self.chunk_bytes > self.max_body_bytes / 2:
            # The estimate leaves out names and lengths, which can double the size of short datums.
            raise ValueError("CLIENT_CHUNK_BYTES must be at most half of MAX_BODY_MIB")
        return self

    @property
    def chunk_bytes(self) -> int:
        """Bytes up to which clients fill one forward_backward body, by their own estimate."""
        return self.client_chunk_bytes or max(1, self.max_body_bytes // 2)
