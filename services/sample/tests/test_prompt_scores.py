"""Target and alternative tokens of a prompt: the real engine against Hugging Face and peft.

The engine of these tests takes prompts in passes of 64 tokens and scores 48 rows at a time, so that most of them meet
a seam.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tinsmith_common.errors import InvalidInput
from tinsmith_sample.engines.base import (
    NEVER,
    Adapter,
    PromptAlternatives,
    PromptTargets,
    SampleResult,
    SampleSpec,
)
from tinsmith_sample.engines.sglang import SGLangEngine

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

TOLERANCE = 3e-5  # as in test_sglang_engine.py, for its reasons
VOCABULARY = 512
HEAD_AND_MLP = ("gate_proj", "up_proj", "down_proj", "lm_head")

Distributions = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="session")
def adapter(make_adapter: Callable[..., Adapter]) -> Adapter:
    """An adapter that trains the head too."""
    return make_adapter(8, HEAD_AND_MLP, seed=400)


def _prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist())


def _targets(length: int, per_row: int, seed: int, first: int = 1) -> PromptTargets:
    random = np.random.default_rng(seed)
    positions = np.sort(random.integers(first, length, per_row * length))
    return PromptTargets(
        tuple(positions.tolist()), tuple(random.integers(0, VOCABULARY, len(positions)).tolist())
    )


async def _drawn(
    engine: SGLangEngine, spec: SampleSpec, adapter: Adapter | None = None
) -> PromptAlternatives:
    drawn = (await engine.sample(replace(spec, max_tokens=1), adapter)).alternatives
    assert drawn is not None
    return drawn


def _worst(result: SampleResult, targets: PromptTargets, expected: NDArray[np.float32]) -> float:
    assert result.targets is not None
    assert len(result.targets) == len(targets.ids)
    return float(np.abs(result.targets - expected[np.asarray(targets.positions) - 1, targets.ids]).max())


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("length", [2, 60, 64, 65, 200, 255])
async def test_target_logprobs_equal_hugging_face(
    engine: SGLangEngine, distributions: Distributions, adapter: Adapter, length: int, with_adapter: bool
) -> None:
    chosen = adapter if with_adapter else None
    prompt, targets = _prompt(length, length), _targets(length, 3, length)
    result = await engine.sample(SampleSpec(prompt, max_tokens=1, targets=targets), chosen)
    assert _worst(result, targets, distributions(prompt, chosen)) < TOLERANCE


async def test_targets_of_requests_that_share_a_batch_do_not_mix(
    engine: SGLangEngine, distributions: Distributions, adapter: Adapter
) -> None:
    """Among requests without targets, of all lengths, with and without the adapter."""

    async def one(index: int) -> float:
        chosen = adapter if index % 3 == 0 else None
        prompt = _prompt(7 + 9 * index, index)
        spec = SampleSpec(prompt, max_tokens=3, prompt_logprobs=index % 4 == 0)
        if index % 2:
            await engine.sample(spec, chosen)
            return 0.0
        targets = _targets(len(prompt), 2, index)
        result = await engine.sample(replace(spec, targets=targets, prompt_alternatives=2), chosen)
        return _worst(result, targets, distributions(prompt, chosen))

    assert max(await asyncio.gather(*map(one, range(24)))) < TOLERANCE


async def test_targets_at_the_end_of_a_prompt_leave_its_beginning_to_the_cache(
    engine: SGLangEngine, distributions: Distributions
) -> None:
    prompt = _prompt(150, 7)
    await engine.sample(SampleSpec(prompt, max_tokens=1))
    targets = _targets(150, 1, 7, first=140)
    result = await engine.sample(SampleSpec(prompt, max_tokens=1, targets=targets))
    assert _worst(result, targets, distributions(prompt, None)) < TOLERANCE
    assert 0 < result.cached_tokens <= 140


async def test_target_logprobs_do_not_depend_on_how_much_else_is_scored(
    engine: SGLangEngine, distributions: Distributions
) -> None:
    """`prompt_logprobs_last_n` does not bound them, nor do they add to what it fills."""
    prompt, targets = _prompt(90, 8), _targets(90, 1, 8)
    spec = SampleSpec(prompt, max_tokens=1, targets=targets, prompt_logprobs=True, prompt_logprobs_last_n=5)
    result = await engine.sample(spec)
    expected = distributions(prompt, None)
    assert _worst(result, targets, expected) < TOLERANCE
    assert result.prompt is not None
    assert np.isnan(result.prompt.logprobs[:85]).all()
    own = expected[np.arange(84, 89), prompt[85:]]
    np.testing.assert_allclose(result.prompt.logprobs[85:], own, atol=TOLERANCE)


async def test_alternatives_are_drawn_from_each_position_s_distribution(
    engine: SGLangEngine, distributions: Distributions, adapter: Adapter
) -> None:
    prompt, k, temperature = _prompt(70, 9), 3000, 1.5
    spec = SampleSpec(prompt, prompt_alternatives=k, temperature=temperature, seed=4)
    drawn = await _drawn(engine, spec, adapter)
    assert drawn.tokens.shape == drawn.logprobs.shape == (69, k)
    expected = distributions(prompt, adapter)
    for row in range(69):
        np.testing.assert_allclose(drawn.logprobs[row], expected[row][drawn.tokens[row]], atol=TOLERANCE)
        weights = np.exp(expected[row].astype(np.float64) / temperature)
        wanted = k * weights / weights.sum()
        bins = wanted >= 5
        seen = np.bincount(drawn.tokens[row], minlength=VOCABULARY)
        # Pearson's statistic with the rest as one more bin. Seeded, so the same in every run: five standard
        # deviations over its mean has a chance of 1 in 10^5 or so.
        seen, wanted = (np.append(part[bins], part[~bins].sum()) for part in (seen, wanted))
        freedom = bins.sum()
        assert (np.square(seen - wanted) / wanted).sum() < freedom + 5 * np.sqrt(2 * freedom)


async def test_a_seed_repeats_its_alternatives_whatever_shares_the_batch(engine: SGLangEngine) -> None:
    spec = SampleSpec(_prompt(80, 10), prompt_alternatives=4, seed=2**63 - 1)
    alone = await _drawn(engine, spec)
    others = [engine.sample(SampleSpec(_prompt(9 + i, i), max_tokens=9)) for i in range(10)]
    crowd = asyncio.gather(*others)
    crowded, _ = await asyncio.gather(_drawn(engine, spec), crowd)
    # A last digit that differs between batches can move a draw that falls on the border of two tokens: none here.
    np.testing.assert_array_equal(alone.tokens, crowded.tokens)
    assert (alone.tokens != (await _drawn(engine, replace(spec, seed=1))).tokens).any()


async def test_without_a_seed_alternatives_differ(engine: SGLangEngine) -> None:
    spec = SampleSpec(_prompt(20), prompt_alternatives=4, temperature=4.0)
    first, second = [await _drawn(engine, spec) for _ in range(2)]
    assert (first.tokens != second.tokens).any()


async def test_a_prompt_of_one_token_has_no_alternatives(engine: SGLangEngine) -> None:
    assert (await _drawn(engine, SampleSpec((5,), prompt_alternatives=3))).tokens.shape == (0, 3)


async def test_scores_of_the_prompt_leave_the_samples_as_they_are(engine: SGLangEngine) -> None:
    plain = SampleSpec(_prompt(30), num_samples=3, max_tokens=12, seed=3, stops=NEVER)
    scored = replace(plain, targets=_targets(30, 2, 1), prompt_alternatives=2)
    one, two = await engine.sample(plain), await engine.sample(scored)
    assert [item.tokens for item in one.completions] == [item.tokens for item in two.completions]


async def test_more_scores_than_the_limit_are_refused_with_the_setting_s_name(engine: SGLangEngine) -> None:
    with pytest.raises(InvalidInput, match="MAX_PROMPT_SCORES"):
        await engine.sample(SampleSpec(_prompt(101), prompt_alternatives=10_000))


async def test_an_impossible_target_is_refused_and_the_next_request_works(
    engine: SGLangEngine, adapter: Adapter
) -> None:
    spec = SampleSpec(_prompt(5), max_tokens=1, targets=PromptTargets((1,), (VOCABULARY,)))
    with pytest.raises(InvalidInput, match="token id 512 in target_prompt_logprobs"):
        await engine.sample(spec, adapter)
    assert (await engine.sample(replace(spec, targets=PromptTargets((1,), (5,))), adapter)).completions
