"""Plans inside SGLang's own scoring function as a GPU calls it: rows leave as spans, or come in as logits.

In a process of its own, because importing SGLang patches transformers.
"""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.engine

SCRIPT = """
import numpy as np
from tinsmith_sample.engines import sglang_cpu, sglang_scores
sglang_cpu.install()
sglang_scores.install()
import torch
from sglang.srt.layers import logprob_processor
from sglang.srt.layers.logits_processor import LogitsProcessorOutput

class Copied:
    def synchronize(self): ...

torch.manual_seed(0)
# Two sequences of 5 and 4 rows, cut into chunks of 6 and 3; the first of them has 2 rows before this pass.
logits = 30 + 5 * torch.randn(9, 20)
logprobs = torch.log_softmax(logits, -1)
uniforms = np.random.default_rng(0).random((8, 3))
plan = sglang_scores.Plan(np.asarray([3, 3, 7]), np.asarray([4, 5, 6]), 0.8, uniforms)
other = sglang_scores.Plan(np.asarray([1, 3]), np.asarray([7, 8]), 1.0, uniforms[:, :0])
stretches = [sglang_scores._Stretch([0], plan, 2), sglang_scores._Stretch([0], other, 0)]

def follow(rows, *, pinned, raw):
    values, ids, left = [], [], 0
    for start, end, sequences in ((0, 6, slice(0, 2)), (6, 9, slice(1, 2))):
        row_max = rows[start:end].amax(-1)
        normalizer = (row_max, torch.logsumexp(rows[start:end] - row_max[:, None], -1)) if raw else None
        left = logprob_processor.get_token_ids_logprobs_chunk(
            rows[start:end], stretches[sequences], [5, 4][sequences], values, ids, left,
            log_normalizer=normalizer, copy_to_pinned_cpu=pinned,
        )
    output = LogitsProcessorOutput(
        next_token_logits=None, input_token_ids_logprobs_val=values,
        input_logprobs_copy_done=Copied() if pinned else None,
    )
    output.finalize_input_logprobs()
    return output.input_token_ids_logprobs_val, ids

plain_values, plain_ids = follow(logprobs, pinned=False, raw=False)
assert [len(row) for row in plain_ids[0]] == [5, 3, 3, 3, 4], plain_ids
assert plain_ids[1] == [[7], [], [8], []]
assert plain_values[1] == [[float(logprobs[5, 7])], [], [float(logprobs[7, 8])], []]
for pinned, raw in ((True, False), (False, True), (True, True)):
    values, ids = follow(logits if raw else logprobs, pinned=pinned, raw=raw)
    assert ids == plain_ids
    for row, expected in zip(values[0] + values[1], plain_values[0] + plain_values[1], strict=True):
        np.testing.assert_allclose(row, expected, atol=2e-5)  # logits of 50 in float32: 50 x 2^-23, a few times
"""


def test_rows_are_the_same_by_every_way_out_of_the_worker() -> None:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
