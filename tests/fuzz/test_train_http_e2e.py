"""The train service gets what is nearly a training request: it answers, says whose fault it is, and goes on."""

from collections import Counter

import pytest
from hypothesis import strategies as st

from tests.fuzz.requests import bodies, good
from tests.fuzz.running import for_its_time
from tests.raw import RawClient
from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import parse_forward_backward
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

PLACE = ("m", 1)
"""The address that bodies are made with: the model and its turn are known only when one is sent."""


def addressed(body: bytes, model_id: str, seq_id: int) -> tuple[bytes, bool]:
    """The body for this turn of the model, and whether it takes the turn; what names others is left alone."""
    try:
        parsed = parse_forward_backward(body)
    except InvalidInput:
        return body, False
    if (parsed.model_id, parsed.seq_id) != PLACE:
        return body, False
    parsed.message.model_id, parsed.message.seq_id = model_id, seq_id
    return parsed.message.SerializeToString(), True


def outcome(raw: RawClient, body: bytes) -> str:
    """How a body ended, which must be one of the ways in which one may."""
    answer = raw.submit(body)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["detail"]
        return "refused"
    result = raw.result(answer.json()["request_id"])
    if "protobuf" in result:
        pb.ForwardBackwardOutput.FromString(result["protobuf"])
        return "taken"
    assert result["category"] == "user", result
    assert result["error"]
    return "failed"


def test_a_spoilt_request_is_answered_and_the_next_one_works(stack: Stack) -> None:
    raw, seen = RawClient(stack), Counter[str]()
    model_id, turn = raw.new_model(), 1
    expected = raw.forward_backward(good(model_id, turn))
    assert "protobuf" in expected

    def send(body: bytes) -> None:
        nonlocal turn
        body, takes_turn = addressed(body, model_id, turn + 1)
        seen[outcome(raw, body)] += 1
        turn += 2 if takes_turn else 1
        assert raw.forward_backward(good(model_id, turn)) == expected

    for_its_time([bodies(*PLACE) | st.binary(max_size=64)], send, seconds=10, examples=50)
    print(dict(seen))
    assert min(seen["taken"], seen["failed"]) > 0, seen
