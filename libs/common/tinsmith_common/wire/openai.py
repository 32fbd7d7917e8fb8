"""Bodies of the OpenAI protocol: completions and chat completions.

Absent and null mean the same. What is not named here is kept in `model_extra`, so that options which would change
the answer can be refused by name.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from tinsmith_common.wire.base import WireModel

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20

TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(WireModel):
    """What a stream tells besides the choices."""

    include_usage: bool | None = None


class GenerationRequest(WireModel):
    """What both kinds of completion share."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionRequest(GenerationRequest):
    """`/completions`: prompts as texts or as tokens."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)


class ContentPart(WireModel):
    """A part of a message. Only parts of type `text` have a `text`."""

    type: str
    text: str | None = None


class ChatMessage(WireModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class ChatCompletionRequest(GenerationRequest):
    """`/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
