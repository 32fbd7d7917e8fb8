"""Provenance spans as `stable_reinforce` needs them."""

from dataclasses import replace

import numpy as np
import pytest

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire.codec import WireDatum, WireSpan
from tinsmith_train.services.provenance import sampled_positions

PROMPT, SAMPLED = WireSpan("prompt", "q", 0, 2), WireSpan("sampled", "q", 0, 3)
DATUM = WireDatum(np.arange(5), {}, (PROMPT, SAMPLED), (PROMPT, SAMPLED))


def test_the_mask_marks_the_rows_of_sampled_tokens() -> None:
    assert sampled_positions("datum 0", DATUM, 5).tolist() == [0, 0, 1, 1, 1]


def test_a_span_of_no_length_marks_nothing() -> None:
    spans = (replace(SAMPLED, length=0), replace(PROMPT, length=5))
    assert not sampled_positions("datum 0", replace(DATUM, loss_fn_input_spans=spans), 5).any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(DATUM, model_input_spans=(), loss_fn_input_spans=()), "needs provenance spans"),
        (replace(DATUM, loss_fn_input_spans=()), "needs provenance spans"),
        (replace(DATUM, model_input_spans=()), "needs provenance spans"),
        (replace(DATUM, model_input_spans=(PROMPT,)), "model_input_spans cover 2 positions of 5"),
        (
            replace(DATUM, loss_fn_input_spans=(SAMPLED, SAMPLED)),
            "loss_fn_input_spans cover 6 positions of 5",
        ),
        (replace(DATUM, loss_fn_input_spans=(PROMPT, WireSpan(None))), r"loss_fn_input_spans\[1\] must be"),
        (
            replace(DATUM, model_input_spans=(replace(PROMPT, sequence_id=""), SAMPLED)),
            "name its sequence_id",
        ),
        (
            replace(DATUM, model_input_spans=(replace(PROMPT, length=-1), replace(SAMPLED, length=6))),
            "0 or more",
        ),
        (replace(DATUM, model_input_spans=(replace(PROMPT, offset=-1), SAMPLED)), "0 or more"),
    ],
)
def test_spans_that_do_not_tile_a_datum_are_refused(bad: WireDatum, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"datum 3: .*{message}"):
        sampled_positions("datum 3", bad, 5)
