"""Bodies of the Anthropic protocol: messages.

What is not named here is kept in `model_extra`, so that options which would change the answer can be refused by name.
"""

from typing import Literal

from pydantic import ConfigDict, Field

from tinsmith_common.wire.base import WireModel


class ContentBlock(WireModel):
    """A part of a message. Only blocks of type `text` have a `text`."""

    type: str
    text: str | None = None


class InputMessage(WireModel):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str | list[ContentBlock]


class CountTokensRequest(WireModel):
    """`/messages/count_tokens`: a conversation. A last message of the assistant is the beginning of the answer."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str = Field(min_length=1)
    messages: list[InputMessage] = Field(min_length=1)
    system: str | list[ContentBlock] | None = None


class MessagesRequest(CountTokensRequest):
    """`/messages`: a conversation to go on with."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    stream: bool | None = None
