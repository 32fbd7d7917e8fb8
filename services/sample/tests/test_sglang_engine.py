"""The real SGLang engine against Hugging Face and peft, and its behaviour under faults."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tinsmith_common.errors import EngineFailure, InvalidInput
from tinsmith_sample.engines.base import NEVER, Adapter, EngineLost, SampleSpec, Stops
from tinsmith_sample.engines.sglang import EngineConfig, SGLangEngine

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

# float32 on both sides, sums of at most 128 products in another order: errors of a few 1e-6 at logits of 10 or
# so. A mistake in the mathematics is off by 1e-2 or more with these weights.
TOLERANCE = 3e-5
CONTEXT = 256
VOCABULARY = 512
PLACES = 6  # for adapters, in the engine
EOS = 2
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
HEAD = ("lm_head",)

Reference = Callable[..., Any]
"""See the fixture: logprobs of tokens, with or without an adapter."""
MakeAdapter = Callable[..., Adapter]

FLAT = 4.0
"""A temperature so flat that equal tokens mean equal seeds."""


def _prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist())


@pytest.fixture(scope="session")
def adapters(make_adapter: MakeAdapter) -> list[Adapter]:
    """All modules, head only at the highest rank, attention only, MLP and head, and rank 1."""
    return [
        make_adapter(8, ATTENTION + MLP + HEAD, seed=1),
        make_adapter(64, HEAD, seed=2),
        make_adapter(4, ATTENTION, seed=3),
        make_adapter(32, MLP + HEAD, seed=4, alpha=64),
        make_adapter(1, ATTENTION + MLP, seed=5),
    ]


async def _difference(
    engine: SGLangEngine, reference: Reference, spec: SampleSpec, adapter: Adapter | None
) -> tuple[float, float]:
    """Greatest difference to the reference among prompt logprobs and among sampled ones."""
    result = await engine.sample(replace(spec, prompt_logprobs=True, stops=NEVER), adapter)
    assert result.prompt is not None
    expected = reference(list(spec.prompt), adapter)
    prompt = np.abs(result.prompt.logprobs[1:] - expected).max(initial=0)
    sampled = 0.0
    for item in result.completions:
        whole = reference([*spec.prompt, *item.tokens], adapter)[len(spec.prompt) - 1 :]
        sampled = max(sampled, float(np.abs(item.logprobs - whole).max()))
    return float(prompt), sampled


async def test_logprobs_of_the_base_model_equal_hugging_face(
    engine: SGLangEngine, reference: Reference, record_property: Any
) -> None:
    spec = SampleSpec(_prompt(40), max_tokens=24, num_samples=2)
    prompt, sampled = await _difference(engine, reference, spec, None)
    record_property("max_abs_diff", max(prompt, sampled))
    assert max(prompt, sampled) < TOLERANCE


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.7])
async def test_sampled_logprobs_are_the_models_at_any_temperature(
    engine: SGLangEngine, reference: Reference, temperature: float
) -> None:
    spec = SampleSpec(_prompt(9), max_tokens=16, temperature=temperature, top_k=40, top_p=0.9)
    assert (await _difference(engine, reference, spec, None))[1] < TOLERANCE


@pytest.mark.parametrize("index", range(5))
async def test_logprobs_of_an_adapter_equal_peft(
    engine: SGLangEngine, reference: Reference, adapters: list[Adapter], index: int
) -> None:
    spec = SampleSpec(_prompt(21, index), max_tokens=12)
    base = reference(list(spec.prompt))
    assert np.abs(reference(list(spec.prompt), adapters[index]) - base).max() > 100 * TOLERANCE
    assert max(await _difference(engine, reference, spec, adapters[index])) < TOLERANCE


async def test_adapters_of_one_batch_do_not_mix(
    engine: SGLangEngine, reference: Reference, adapters: list[Adapter], record_property: Any
) -> None:
    """Prompts of different lengths, some scored and some not, so that rows are dropped before the head."""
    choices = [None, *adapters]
    for adapter in adapters:  # all resident, so that the requests below arrive together
        await engine.sample(SampleSpec(_prompt(5), max_tokens=1), adapter)

    async def unscored(index: int) -> float:
        adapter = choices[index % 6]
        spec = SampleSpec(_prompt(5 + 3 * index, index), max_tokens=6, stops=NEVER)
        (item,) = (await engine.sample(spec, adapter)).completions
        whole = reference([*spec.prompt, *item.tokens], adapter)[len(spec.prompt) - 1 :]
        return float(np.abs(item.logprobs - whole).max())

    async def scored(index: int) -> float:
        spec = SampleSpec(_prompt(50 - 2 * index, 99 + index), max_tokens=3)
        return max(await _difference(engine, reference, spec, choices[(index * 5) % 6]))

    differences = await asyncio.gather(*map(unscored, range(18)), *map(scored, range(18)))
    record_property("max_abs_diff", max(differences))
    assert max(differences) < TOLERANCE


async def test_a_cached_prompt_is_not_shared_between_adapters(
    engine: SGLangEngine, reference: Reference, adapters: list[Adapter]
) -> None:
    spec = SampleSpec(_prompt(60, 4), max_tokens=4, stops=NEVER)
    cached = 0
    for adapter in [None, *adapters[:3]] * 2:
        result = await engine.sample(spec, adapter)
        cached += result.cached_tokens
        whole = reference([*spec.prompt, *result.completions[0].tokens], adapter)[len(spec.prompt) - 1 :]
        assert np.abs(result.completions[0].logprobs - whole).max() < TOLERANCE
    assert cached > 0


async def test_equal_seeds_give_equal_samples_whatever_shares_the_batch(engine: SGLangEngine) -> None:
    spec = SampleSpec(_prompt(12), max_tokens=20, seed=11, num_samples=2, stops=NEVER, temperature=FLAT)
    alone = await engine.sample(spec)
    others = [
        engine.sample(SampleSpec(_prompt(7 + i, i), max_tokens=25, temperature=FLAT)) for i in range(20)
    ]
    crowded, *_ = await asyncio.gather(engine.sample(spec), *others)
    assert [item.tokens for item in crowded.completions] == [item.tokens for item in alone.completions]


async def test_samples_of_one_request_are_distinct(engine: SGLangEngine) -> None:
    spec = SampleSpec(_prompt(12), max_tokens=8, seed=11, num_samples=16, stops=NEVER, temperature=FLAT)
    assert len({item.tokens for item in (await engine.sample(spec)).completions}) == 16


async def test_requests_without_a_seed_differ(engine: SGLangEngine) -> None:
    spec = SampleSpec(_prompt(12), max_tokens=8, stops=NEVER, temperature=FLAT)
    first, second = await asyncio.gather(engine.sample(spec), engine.sample(spec))
    assert first.completions[0].tokens != second.completions[0].tokens


async def test_sampled_frequencies_follow_the_model(engine: SGLangEngine, reference: Reference) -> None:
    prompt = _prompt(6, 3)
    result = await engine.sample(SampleSpec(prompt, max_tokens=1, num_samples=1000, seed=0, stops=NEVER))
    drawn = np.bincount([item.tokens[0] for item in result.completions], minlength=VOCABULARY)
    likeliest = int(np.argmax(drawn))
    p = float(np.exp(reference([*prompt, likeliest])[-1]))
    # Five standard deviations of a binomial count.
    assert abs(drawn[likeliest] - 1000 * p) < 5 * np.sqrt(1000 * p * (1 - p))


async def _greedy(engine: SGLangEngine, **changes: Any) -> Any:
    spec = SampleSpec(_prompt(10, 8), max_tokens=30, temperature=0.0, stops=NEVER)
    return (await engine.sample(replace(spec, **changes))).completions[0]


async def test_a_stop_token_ends_the_completion_and_is_part_of_it(engine: SGLangEngine) -> None:
    free = (await _greedy(engine)).tokens
    stop = free[4]
    item = await _greedy(engine, stops=Stops(tokens=(stop,)))
    assert item.tokens == free[: free.index(stop) + 1]
    assert item.stop_reason == "stop"
    assert len(item.logprobs) == len(item.tokens)


async def test_a_stop_string_keeps_the_tokens_that_complete_it(engine: SGLangEngine, tokenizer: Any) -> None:
    free = list((await _greedy(engine)).tokens)
    text = tokenizer.decode(free[3:6])
    item = await _greedy(engine, stops=Stops(strings=(text,)))
    ends = [count for count in range(len(free) + 1) if text in tokenizer.decode(free[:count])]
    assert list(item.tokens) == free[: ends[0]]
    assert item.stop_reason == "stop"
    assert len(item.logprobs) == len(item.tokens)


async def _completions_through_eos(engine: SGLangEngine, stops: Stops) -> list[Any]:
    """Samples so flat and so many that EOS (1 in 512) comes up in some of them."""
    spec = SampleSpec(_prompt(4), max_tokens=60, num_samples=60, seed=5, temperature=20.0, stops=stops)
    return list((await engine.sample(spec)).completions)


async def test_without_stops_eos_ends_a_completion_and_is_part_of_it(engine: SGLangEngine) -> None:
    stopped = [i for i in await _completions_through_eos(engine, Stops()) if i.stop_reason == "stop"]
    assert stopped
    assert all(item.tokens.index(EOS) == len(item.tokens) - 1 for item in stopped)


async def test_an_empty_stop_list_runs_through_eos(engine: SGLangEngine) -> None:
    items = await _completions_through_eos(engine, NEVER)
    assert any(EOS in item.tokens[:-1] for item in items)
    assert all(len(item.tokens) == 60 and item.stop_reason == "length" for item in items)


async def test_given_stops_come_on_top_of_eos(engine: SGLangEngine) -> None:
    items = await _completions_through_eos(engine, Stops(strings=("never said so",)))
    assert any(item.tokens[-1] == EOS and item.stop_reason == "stop" for item in items)


async def test_max_tokens_defaults_to_the_rest_of_the_context(engine: SGLangEngine) -> None:
    spec = SampleSpec(_prompt(200), stops=NEVER)
    assert len((await engine.sample(spec)).completions[0].tokens) == CONTEXT - 200


async def test_the_longest_prompt_can_be_scored(engine: SGLangEngine, reference: Reference) -> None:
    spec = SampleSpec(_prompt(CONTEXT - 1), max_tokens=1)
    assert max(await _difference(engine, reference, spec, None)) < TOLERANCE


async def test_a_prompt_that_is_too_long_is_refused_and_the_next_request_works(
    engine: SGLangEngine, adapters: list[Adapter]
) -> None:
    with pytest.raises(InvalidInput, match="leaves room for 255"):
        await engine.sample(SampleSpec(_prompt(CONTEXT)), adapters[0])
    assert (await engine.sample(SampleSpec(_prompt(5), max_tokens=1), adapters[0])).completions


async def test_position_zero_has_no_logprob(engine: SGLangEngine) -> None:
    result = await engine.sample(SampleSpec(_prompt(5), max_tokens=1, prompt_logprobs=True))
    assert result.prompt is not None
    assert np.isnan(result.prompt.logprobs).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("last_n", [0, 1, 4, 9, 50])
async def test_only_the_last_n_positions_are_scored(
    engine: SGLangEngine, reference: Reference, last_n: int
) -> None:
    prompt = _prompt(10)
    spec = SampleSpec(prompt, max_tokens=1, prompt_logprobs=True, prompt_logprobs_last_n=last_n)
    result = await engine.sample(spec)
    assert result.prompt is not None
    first = max(1, 10 - last_n)
    assert np.isnan(result.prompt.logprobs[:first]).all()
    np.testing.assert_allclose(
        result.prompt.logprobs[first:], reference(list(prompt))[first - 1 :], atol=TOLERANCE
    )


async def test_top_logprobs_are_the_best_of_each_position(engine: SGLangEngine, reference: Reference) -> None:
    prompt = _prompt(6)
    spec = SampleSpec(
        prompt, max_tokens=2, temperature=0, topk_prompt_logprobs=3, topk_sample_logprobs=2, stops=NEVER
    )
    result = await engine.sample(spec)
    assert result.prompt is not None
    assert [row and len(row) for row in result.prompt.top] == [None, 3, 3, 3, 3, 3]
    token, logprob = result.prompt.top[3][1]  # type: ignore[index]
    assert logprob == pytest.approx(float(reference([*prompt[:3], token])[-1]), abs=TOLERANCE)
    item = result.completions[0]
    assert [row[0] for row in item.top] == [
        (token, pytest.approx(float(value))) for token, value in zip(item.tokens, item.logprobs, strict=True)
    ]
    assert [len(row) for row in item.top] == [2, 2]


async def test_more_adapters_than_places_are_all_served_right(
    engine: SGLangEngine, reference: Reference, make_adapter: MakeAdapter
) -> None:
    many = [make_adapter(2 + index % 3, ATTENTION + HEAD, seed=100 + index) for index in range(9)]
    spec = SampleSpec(_prompt(11), max_tokens=3)
    for adapter in many:
        assert max(await _difference(engine, reference, spec, adapter)) < TOLERANCE
    differences = await asyncio.gather(*(_difference(engine, reference, spec, item) for item in many * 2))
    assert np.max(differences) < TOLERANCE
    assert engine.stats()["adapters"] == PLACES


async def test_weights_that_are_not_there_fail_and_the_next_request_works(
    engine: SGLangEngine, adapters: list[Adapter], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"adapter_config\.json"):
        await engine.sample(SampleSpec(_prompt(5), max_tokens=1), Adapter("gone", tmp_path))
    assert (await engine.sample(SampleSpec(_prompt(5), max_tokens=1), adapters[2])).completions


async def test_a_cancelled_request_leaves_the_engine_and_lets_its_adapter_go(
    engine: SGLangEngine, make_adapter: MakeAdapter
) -> None:
    """After an abort SGLang must still unload the adapter; unloading one that is counted as used hangs."""
    abandoned = make_adapter(2, MLP, seed=200)
    spec = SampleSpec(_prompt(5), num_samples=4, max_tokens=250, stops=NEVER)
    task = asyncio.create_task(engine.sample(spec, abandoned))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.stats()["requests"] == 0
    assert await engine.healthy()
    others = [make_adapter(2, MLP, seed=201 + index) for index in range(PLACES)]
    for other in others:  # each takes the place of an older one, in the end of the abandoned one
        await engine.sample(SampleSpec(_prompt(5), max_tokens=1), other)
    assert engine.stats()["adapters_stuck"] == 0


@pytest_asyncio.fixture(loop_scope="session")
async def mortal_engine(tiny_model: Path) -> AsyncIterator[SGLangEngine]:
    engine = SGLangEngine(EngineConfig(str(tiny_model), device="cpu", engine_args={"max_total_tokens": 2048}))
    await engine.start()
    yield engine
    await engine.stop()


async def test_an_engine_that_is_killed_is_replaced(
    mortal_engine: SGLangEngine, adapters: list[Adapter]
) -> None:
    psutil = pytest.importorskip("psutil")
    spec = SampleSpec(_prompt(5), num_samples=2, max_tokens=250, stops=NEVER)
    await mortal_engine.sample(replace(spec, max_tokens=1), adapters[0])
    workers = psutil.Process(mortal_engine.pid).children()
    for worker in workers:
        worker.suspend()  # so that nothing can end before the engine does

    async def read() -> None:
        async with mortal_engine.stream([spec], adapters[0]) as pieces:
            async for _ in pieces:
                pass

    tasks = [asyncio.create_task(mortal_engine.sample(spec, adapters[0])), asyncio.create_task(read())]
    while mortal_engine.stats()["requests"] < 4:  # noqa: ASYNC110  (there is no event for it)
        await asyncio.sleep(0)
    psutil.Process(mortal_engine.pid).kill()
    for task in tasks:
        with pytest.raises(EngineLost):
            await task
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert (await mortal_engine.sample(spec, adapters[0])).completions


async def test_a_model_that_cannot_be_loaded_is_an_engine_failure(tmp_path: Path) -> None:
    engine = SGLangEngine(EngineConfig(str(tmp_path / "nothing"), device="cpu"))
    with pytest.raises(EngineFailure, match="ended while starting"):
        await engine.start()
    await engine.stop()


async def test_the_time_of_the_first_token_is_told_and_not_that_of_the_last(engine: SGLangEngine) -> None:
    begun_at = time.time()
    long = asyncio.create_task(engine.sample(SampleSpec(_prompt(20, 91), max_tokens=200, stops=NEVER)))
    short = asyncio.create_task(engine.sample(SampleSpec(_prompt(20, 92), max_tokens=2, stops=NEVER)))
    await short
    short_ended_at, long_went_on = time.time(), not long.done()
    first_token_at = (await long).first_token_at
    assert long_went_on
    assert first_token_at is not None
    # The long one came first, so its first token is there when the whole of the short one is.
    assert begun_at < first_token_at < short_ended_at
