"""Whatever bytes arrive as a training request, decoding and checking either takes them or says what is wrong."""

from hypothesis import strategies as st

from tests.fuzz.requests import bodies
from tests.fuzz.running import for_its_time
from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire.codec import decode_forward_backward, parse_forward_backward
from tinsmith_train.engine.types import ModelInfo
from tinsmith_train.engine.validation import check_item
from tinsmith_train.services.training import to_item

MODEL = ModelInfo(architecture="any", vocab_size=1024, max_context_length=64, num_parameters=1)


def test_a_request_is_taken_or_refused_with_a_reason() -> None:
    seen = {"taken": 0, "refused": 0}

    def decode(body: bytes) -> None:
        try:
            request = to_item(decode_forward_backward(parse_forward_backward(body).message))
            for datum in check_item(request, MODEL).datums:
                assert len(datum.tokens) == len(datum.targets) > 0
            seen["taken"] += 1
        except InvalidInput:
            seen["refused"] += 1

    for_its_time([bodies("s:train:0", 1), st.binary(max_size=64)], decode, seconds=8, examples=50)
    # Otherwise the changes would be so gross that nothing behind the first check was reached.
    assert seen["taken"] > seen["refused"] / 50 > 0, seen
