"""Provenance spans: which loss rows of a datum were sampled, and by which request."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire.codec import WireDatum, WireSpan


def sampled_positions(where: str, datum: WireDatum, rows: int) -> NDArray[np.float32]:
    """1 where a loss row predicts a sampled token and 0 elsewhere, float32 `[rows]`.

    Raises `InvalidInput` unless the datum has both span lists and each tiles its field exactly.
    """
    if not (datum.model_input_spans and datum.loss_fn_input_spans):
        raise InvalidInput(
            f"{where}: stable_reinforce needs provenance spans: attach both lists with Datum.with_provenance"
        )
    _check_tiling(f"{where}: model_input_spans", datum.model_input_spans, len(datum.tokens))
    _check_tiling(f"{where}: loss_fn_input_spans", datum.loss_fn_input_spans, rows)
    spans = datum.loss_fn_input_spans
    sampled = np.array([span.kind == "sampled" for span in spans], np.float32)
    return np.repeat(sampled, [span.length for span in spans])


def _check_tiling(where: str, spans: Sequence[WireSpan], size: int) -> None:
    for index, span in enumerate(spans):
        if span.kind is None or not span.sequence_id:
            raise InvalidInput(
                f"{where}[{index}] must be prompt_tokens or sampled_tokens and name its sequence_id"
            )
        if span.offset < 0 or span.length < 0:
            raise InvalidInput(f"{where}[{index}]: offset and length must be 0 or more")
    covered = sum(span.length for span in spans)
    if covered != size:
        raise InvalidInput(f"{where} cover {covered} positions of {size}: they must tile it exactly")
