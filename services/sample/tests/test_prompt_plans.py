"""Scores of a plan, computed from logprobs that are given. `test_prompt_scores.py` has the engine."""

from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")

from tinsmith_sample.engines import sglang_scores  # noqa: E402
from tinsmith_sample.engines.sglang_scores import Plan  # noqa: E402

VOCABULARY = 50
NONE = np.zeros(0, np.int64)


def _logprobs(rows: int) -> Any:
    torch.manual_seed(0)
    return torch.log_softmax(torch.randn(rows, VOCABULARY), -1)


def _drawing(rows: int, k: int, temperature: float = 1.0, seed: int = 0) -> Plan:
    return Plan(NONE, NONE, temperature, np.random.default_rng(seed).random((rows, k)))


def test_targets_are_looked_up_in_the_row_before_their_token() -> None:
    logprobs = _logprobs(4)
    plan = Plan(np.asarray([1, 1, 3]), np.asarray([7, 8, 9]), 1.0, np.zeros((4, 0)))
    values, ids = plan.score(logprobs, 0)
    assert ids == [[7, 8], [], [9], []]
    assert values == [logprobs[0, [7, 8]].tolist(), [], [float(logprobs[2, 9])], []]


def test_a_later_stretch_of_the_prompt_has_the_targets_of_its_own_positions() -> None:
    plan = Plan(np.asarray([1, 2, 3]), np.asarray([7, 8, 9]), 1.0, np.zeros((4, 0)))
    assert plan.score(_logprobs(2), 1)[1] == [[8], [9]]


def test_rows_given_as_logits_are_normalised() -> None:
    logprobs = _logprobs(3)
    logits = logprobs + torch.tensor([[5.0], [-3.0], [700.0]])
    row_max = logits.amax(-1)
    normalizer = (row_max, torch.logsumexp(logits - row_max[:, None], -1))
    plan = Plan(np.asarray([1, 3]), np.asarray([7, 9]), 1.0, np.zeros((3, 0)))
    found = [row for row in plan.score(logits, 0, normalizer)[0] if row]
    # Adding 700 and subtracting it again costs 700 x 2^-24 of float32.
    np.testing.assert_allclose(found, [[float(logprobs[0, 7])], [float(logprobs[2, 9])]], atol=5e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_distribution_at_the_temperature(temperature: float) -> None:
    logprobs, k = _logprobs(2), 20_000
    _, ids = _drawing(2, k, temperature).score(logprobs, 0)
    for row, drawn in zip(logprobs, ids, strict=True):
        expected = k * torch.softmax(row.double() / temperature, -1).numpy()
        seen = np.bincount(drawn, minlength=VOCABULARY)
        # Pearson's statistic over the bins with at least 5 expected; the draws are fixed by their seed. Its mean is
        # the number of bins less one and its variance twice that: five deviations above is no chance.
        bins = expected >= 5
        statistic = (np.square(seen - expected) / expected)[bins].sum()
        freedom = bins.sum() - 1
        assert statistic < freedom + 5 * np.sqrt(2 * freedom)
        assert freedom > 10


def test_draws_come_with_the_model_s_logprobs_whatever_the_temperature() -> None:
    logprobs = _logprobs(3)
    values, ids = _drawing(3, 6, 0.3).score(logprobs, 0)
    assert values == [logprobs[row, drawn].tolist() for row, drawn in enumerate(ids)]


def test_at_temperature_zero_every_draw_is_the_likeliest_token() -> None:
    logprobs = _logprobs(3)
    assert _drawing(3, 2, 0.0).score(logprobs, 0)[1] == [[int(best)] * 2 for best in logprobs.argmax(-1)]


def test_a_temperature_next_to_zero_draws_the_likeliest_token_too() -> None:
    logprobs = _logprobs(3)
    assert _drawing(3, 2, 1e-300).score(logprobs, 0)[1] == [[int(best)] * 2 for best in logprobs.argmax(-1)]


def test_a_token_without_probability_is_never_drawn() -> None:
    logprobs = torch.log_softmax(torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]), -1)
    plan = Plan(NONE, NONE, 1.0, np.asarray([[0.0, 0.25, 0.5, 0.75, np.nextafter(1.0, 0.0)]]))
    assert plan.score(logprobs, 0)[1] == [[1, 1, 3, 3, 3]]


def test_draws_are_the_same_however_the_prompt_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    logprobs, plan = _logprobs(9), _drawing(8, 5)
    whole = plan.score(logprobs, 0)
    parts = [plan.score(logprobs[start:end], start) for start, end in ((0, 2), (2, 3), (3, 9))]
    monkeypatch.setattr(sglang_scores, "_BLOCK_ELEMENTS", 2 * VOCABULARY)
    joined = tuple([row for part in parts for row in part[side]] for side in (0, 1))
    assert joined == whole
    assert plan.score(logprobs, 0) == whole
    assert whole[1][8] == []  # after the last token of the prompt the completion begins
