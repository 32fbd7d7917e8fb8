"""Bodies of the older surface: JSON where today's clients speak protobuf (docs/older-surface.md)."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from tinsmith_common.wire.base import WireModel
from tinsmith_common.wire.sampling import ModelInput


class TensorData(WireModel):
    """A tensor: row-major values, or the values of a CSR matrix with its two lists of indices."""

    data: list[int] | list[float]
    dtype: Literal["int64", "float32"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class Datum(WireModel):
    """One training sequence."""

    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]


class ForwardBackwardInput(WireModel):
    """What a pass runs on."""

    data: list[Datum]
    loss_fn: str
    loss_fn_config: dict[str, float | str] | None = None


class ForwardBackwardRequest(WireModel):
    """`forward_backward` as JSON. Its address is read before the rest."""

    forward_backward_input: ForwardBackwardInput


class ForwardRequest(WireModel):
    """`forward`: the same without gradients."""

    forward_input: ForwardBackwardInput


class ForwardBackwardOutput(WireModel):
    """Result of both."""

    loss_fn_output_type: str
    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float]


class UnloadModelRequest(WireModel):
    """Frees a model."""

    model_id: str = Field(min_length=1)


class UnloadModelResult(WireModel):
    """Result of the future."""

    model_id: str
    type: Literal["unload_model"] = "unload_model"


class CheckpointArchiveUrlResponse(WireModel):
    """Where a checkpoint can be downloaded as one file, without any header, until `expires`."""

    url: str
    expires: datetime


class TokenizerResponse(WireModel):
    """A model's tokenizer: the contents of its `tokenizer.json` and `tokenizer_config.json`."""

    model_id: str
    model_name: str
    tokenizer_id: str
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]


class CreateSamplingClientRequest(WireModel):
    """What to sample from. Without a session the sampling client belongs to the account alone."""

    session_id: str | None = Field(default=None, min_length=1)
    sampling_session_seq_id: int = Field(default=0, ge=0)
    model_path: str | None = None
    base_model: str | None = None


class CreateSamplingClientResponse(WireModel):
    """The sampling session to sample from."""

    sampling_session_id: str
    type: Literal["create_sampling_client"] = "create_sampling_client"


class SampleTarget(WireModel):
    """What `sample` samples from: a sampling session, saved weights, or a base model."""

    sampling_session_id: str | None = Field(default=None, min_length=1)
    seq_id: int | None = Field(default=None, ge=0)
    model_path: str | None = None
    base_model: str | None = None


class SampledSequence(WireModel):
    """One completion; `topk_logprobs` has `[token, logprob]` pairs, best first, if they were asked for."""

    stop_reason: Literal["stop", "length"]
    tokens: list[int]
    logprobs: list[float]
    topk_logprobs: list[list[tuple[int, float]] | None] | None = None


class PromptAltTokens(WireModel):
    """Tokens drawn at each position of the prompt, and their log-probabilities."""

    tokens: TensorData
    logprobs: TensorData


class SampleResponse(WireModel):
    """Result of a sample. None stands where there is no log-probability, as for the first token of a prompt."""

    sequences: list[SampledSequence]
    type: Literal["sample"] = "sample"
    prompt_logprobs: list[float | None] | None = None
    topk_prompt_logprobs: list[list[tuple[int, float]] | None] | None = None
    prompt_cache_hit_tokens: int = 0
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens: PromptAltTokens | None = None
