"""Losses through the gateway with the SDK."""

from typing import Any

import numpy as np
import pytest
import tinker

from tests.data import logprobs_of, some_tokens

pytestmark = pytest.mark.e2e

PROMPT, SAMPLED = 4, 6


def rollout(seed: int, *, spans: bool = True) -> tinker.Datum:
    """What a reinforcement loop sends: no logprobs and advantages where the prompt is predicted."""
    tokens = some_tokens(seed, PROMPT + SAMPLED)
    blank = [0.0] * (PROMPT - 1)
    rng = np.random.default_rng(seed)
    inputs: dict[str, Any] = {
        "target_tokens": tokens[1:],
        "logprobs": blank + (-6 + rng.normal(size=SAMPLED)).tolist(),
        "advantages": blank + rng.normal(size=SAMPLED).tolist(),
    }
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
    if not spans:
        return datum
    return datum.with_provenance(
        [
            tinker.PromptProvenanceSpan(sequence_id="s", length=PROMPT),
            tinker.SampledProvenanceSpan(sequence_id="s", length=SAMPLED - 1),
        ],
        [
            tinker.PromptProvenanceSpan(sequence_id="s", offset=1, length=PROMPT - 1),
            tinker.SampledProvenanceSpan(sequence_id="s", length=SAMPLED),
        ],
    )


def test_stable_reinforce_trains_the_documented_substitute_and_says_so(
    trainer: tinker.TrainingClient,
) -> None:
    data = [rollout(1), rollout(2)]
    output = trainer.forward_backward(data, "stable_reinforce", {"kl_coeff": 0.1}).result()
    expected = 0.0
    for datum, logprobs in zip(data, logprobs_of(output), strict=True):
        lp = logprobs[PROMPT - 1 :].astype(np.float64)
        q, advantage = (
            datum.loss_fn_inputs[name].to_numpy()[PROMPT - 1 :] for name in ("logprobs", "advantages")
        )
        ratio = np.exp(lp - q)
        gain = np.minimum(ratio, 2) * lp * advantage
        expected -= (gain - 0.1 * (ratio - 1 - np.log(ratio))).sum()
    # The sum of a dozen float32 terms of size 10.
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert output.metrics["stable_reinforce_substitute:unique"] == 1
    assert trainer.optim_step(tinker.AdamParams()).result().metrics


def test_stable_reinforce_without_spans_is_the_user_s_mistake(trainer: tinker.TrainingClient) -> None:
    data = [rollout(1), rollout(2, spans=False)]
    with pytest.raises(tinker.RequestFailedError, match=r"datum 1: .*with_provenance") as caught:
        trainer.forward_backward(data, "stable_reinforce").result()
    assert caught.value.category == "user"


def test_other_losses_accept_spans_and_ignore_them(trainer: tinker.TrainingClient) -> None:
    with_spans, without = (
        trainer.forward([rollout(1, spans=spans)], "importance_sampling").result() for spans in (True, False)
    )
    assert with_spans.metrics == without.metrics
