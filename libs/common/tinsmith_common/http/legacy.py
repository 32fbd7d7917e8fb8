"""Results in the form that a client can read."""

import asyncio

from tinsmith_common.futures import JSON, PROTOBUF, Outcome, PromiseKind
from tinsmith_common.wire.legacy_codec import forward_backward_json, sample_json


async def negotiate(outcome: Outcome, accept: str) -> tuple[bytes, str]:
    """The payload of a result and its media type: protobuf only for a client whose `Accept` names it."""
    if outcome.media_type != PROTOBUF or PROTOBUF in accept:
        return outcome.payload, outcome.media_type
    convert = sample_json if outcome.kind == PromiseKind.SAMPLE else forward_backward_json
    # A large result takes a while to convert, and other clients should not notice.
    return await asyncio.to_thread(convert, outcome.payload), JSON
