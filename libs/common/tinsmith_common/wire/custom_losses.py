"""Losses that clients upload (spec section 7.9)."""

from typing import Any, Literal

from pydantic import Field

from tinsmith_common.wire.base import WireModel
from tinsmith_common.wire.training import MAX_SEQ_ID


class CustomLossInput(WireModel):
    """`logprobs`, or a key of `loss_fn_inputs`. Rank 0 is a scalar, 1 is `[N]`, 2 is `[N, K]`."""

    name: str
    rank: Literal[0, 1, 2]


class CustomLossNode(WireModel):
    """One node of a torch.fx trace. Arguments are JSON values or objects of one key, such as `{"ref": name}`."""

    op: str
    name: str
    target: str
    args: list[Any] = Field(default_factory=list[Any])
    kwargs: dict[str, Any] = Field(default_factory=dict[str, Any])


class CustomLossGraph(WireModel):
    """Nodes in the order of execution. Nothing in it is executable by itself."""

    format: Literal[1] = 1
    nodes: list[CustomLossNode]


class CustomLossDefinition(WireModel):
    """What a loss takes and computes."""

    inputs: list[CustomLossInput]
    graph: CustomLossGraph


class CreateCustomLossRequest(CustomLossDefinition):
    """Stores a loss with a session. `session_id` and `custom_loss_seq_id` are its natural key."""

    session_id: str = Field(min_length=1)
    custom_loss_seq_id: int = Field(ge=0, le=MAX_SEQ_ID)
    name: str = Field(max_length=1000)


class CreateCustomLossResult(WireModel):
    """Result of the future."""

    loss_id: str
    type: Literal["create_custom_loss"] = "create_custom_loss"
