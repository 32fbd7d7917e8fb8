"""Sampling (spec section 3.5)."""

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

from tinsmith_common.wire.base import WireModel

MAX_INT64 = 2**63 - 1
MAX_TENSOR_ELEMENTS = 2**22

_Index = Annotated[int, Field(ge=0, le=MAX_INT64)]
_TokenId = Annotated[int, Field(ge=-1, le=MAX_INT64)]
# The first fault is enough: a report of each of four million cells would be a flood.
_Indices = Annotated[list[_Index], Field(max_length=MAX_TENSOR_ELEMENTS, fail_fast=True)]
_TokenIds = Annotated[list[_TokenId], Field(max_length=MAX_TENSOR_ELEMENTS, fail_fast=True)]


class CreateSamplingSessionRequest(WireModel):
    """Opens a sampling session on a base model or on saved weights."""

    session_id: str = Field(min_length=1)
    sampling_session_seq_id: int = Field(ge=0)
    model_path: str | None = None
    base_model: str | None = None


class CreateSamplingSessionResponse(WireModel):
    """The session to sample from."""

    sampling_session_id: str
    type: Literal["create_sampling_session"] = "create_sampling_session"


class JoinSamplingSessionRequest(WireModel):
    """A copy of a sampling client has woken up in another process."""

    sampling_session_id: str = Field(min_length=1)


class JoinSamplingSessionResponse(WireModel):
    """Its number among the clients of the session; the first client is 0."""

    client_counter: int
    type: Literal["join_sampling_session"] = "join_sampling_session"


class SamplerResponse(WireModel):
    """What a sampling session samples from."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class EncodedTextChunk(WireModel):
    """Token ids."""

    type: Literal["encoded_text"]
    tokens: list[int]


class OtherChunk(WireModel):
    """Images and audio: parsed so far as to refuse them by name."""

    type: Literal["image", "image_asset_pointer", "dmel"]


def _named_type(chunk: Any) -> Any:
    """SDKs before 0.24 leave out the type of a text chunk, which is the default."""
    if isinstance(chunk, dict) and "type" not in chunk:
        return {"type": "encoded_text", **cast("dict[str, Any]", chunk)}
    return chunk


class ModelInput(WireModel):
    """A prompt: chunks that follow each other without separators."""

    chunks: list[
        Annotated[EncodedTextChunk | OtherChunk, Field(discriminator="type"), BeforeValidator(_named_type)]
    ]


class SamplingParams(WireModel):
    """How to draw. `stop`: absent = EOS ends, [] = nothing ends, otherwise EOS and these."""

    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_INT64)
    stop: str | list[str] | list[int] | None = None
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_k: int = -1
    top_p: float = Field(default=1.0, gt=0, le=1)


class TokenTensor(WireModel):
    """Token ids of a matrix, row by row: all cells, or in CSR form those that are listed. -1 stands for no token."""

    data: _TokenIds
    dtype: Literal["int64"]
    shape: tuple[_Index, _Index]
    sparse_crow_indices: _Indices | None = None
    sparse_col_indices: _Indices | None = None


class SampleRequest(WireModel):
    """`asample`."""

    sampling_session_id: str = Field(min_length=1)
    seq_id: int = Field(ge=0, le=MAX_INT64)
    num_samples: int = Field(default=1, ge=1)
    prompt: ModelInput
    sampling_params: SamplingParams = SamplingParams()
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = Field(default=0, ge=0)
    topk_sample_logprobs: int = Field(default=0, ge=0)
    target_prompt_logprobs: TokenTensor | None = None
    prompt_alt_tokens_k: int = Field(default=0, ge=0)
    prompt_logprobs_last_n: int | None = Field(default=None, ge=0)
    record_stability_info: bool = False
