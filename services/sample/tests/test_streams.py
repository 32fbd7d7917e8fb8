"""Streams of the real SGLang engine: the same samples, in pieces."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tinsmith_common.errors import InvalidInput
from tinsmith_sample.engines.base import NEVER, Adapter, Piece, SampleSpec, Stops
from tinsmith_sample.engines.sglang import SGLangEngine

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

VOCABULARY = 512
PLACES = 6  # for adapters, in the engine
# The same computation in batches of other sizes: sums in another order, as in test_sglang_engine.
TOLERANCE = 3e-5
MLP = ("gate_proj", "up_proj", "down_proj")

MakeAdapter = Callable[..., Adapter]


def _prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist())


def _spec(seed: int, **changes: Any) -> SampleSpec:
    spec = SampleSpec(_prompt(6 + seed, seed), num_samples=2, max_tokens=20, seed=seed, stops=NEVER)
    return replace(spec, topk_sample_logprobs=2, **changes)


async def _pieces(
    engine: SGLangEngine, specs: Sequence[SampleSpec], adapter: Adapter | None = None
) -> list[Piece]:
    async with engine.stream(specs, adapter) as pieces:
        return [piece async for piece in pieces]


@pytest.mark.parametrize("trained", [False, True])
async def test_the_pieces_of_a_stream_are_the_samples(
    engine: SGLangEngine, make_adapter: MakeAdapter, trained: bool
) -> None:
    adapter = make_adapter(4, MLP, seed=300) if trained else None
    specs = [_spec(1), _spec(2), _spec(3, temperature=0.7)]
    pieces = await _pieces(engine, specs, adapter)
    for request, spec in enumerate(specs):
        whole = await engine.sample(spec, adapter)
        for index, expected in enumerate(whole.completions):
            mine = [piece for piece in pieces if (piece.request, piece.index) == (request, index)]
            assert sum((piece.grown.tokens for piece in mine), ()) == expected.tokens
            logprobs = np.concatenate([piece.grown.logprobs for piece in mine])
            np.testing.assert_allclose(logprobs, expected.logprobs, atol=TOLERANCE)
            tops = sum((piece.grown.top for piece in mine), ())
            assert [[token for token, _ in row] for row in tops] == [
                [token for token, _ in row] for row in expected.top
            ]
            assert [piece.last for piece in mine] == [False] * (len(mine) - 1) + [True]
            assert mine[-1].grown.stop_reason == expected.stop_reason


async def test_tokens_come_one_by_one(engine: SGLangEngine) -> None:
    pieces = await _pieces(engine, [_spec(1, num_samples=1)])
    # The engine may put several together when this process lags behind; all of them at once would be no stream.
    assert len(pieces) > 10


async def test_a_stop_token_ends_a_stream(engine: SGLangEngine) -> None:
    spec = _spec(5, num_samples=1)
    free = (await engine.sample(spec)).completions[0].tokens
    pieces = await _pieces(engine, [replace(spec, stops=Stops(tokens=(free[4],)))])
    assert sum((piece.grown.tokens for piece in pieces), ()) == free[: free.index(free[4]) + 1]
    assert pieces[-1].grown.stop_reason == "stop"


async def test_a_bad_request_is_refused_before_any_work(engine: SGLangEngine) -> None:
    with pytest.raises(InvalidInput, match="vocabulary"):
        await _pieces(engine, [_spec(1), replace(_spec(2), prompt=(VOCABULARY,))])
    assert engine.stats()["requests"] == 0


async def test_cached_tokens_of_a_prompt_are_told(engine: SGLangEngine) -> None:
    spec = replace(_spec(7, num_samples=1), prompt=_prompt(60, 777))
    await engine.sample(spec)
    pieces = await _pieces(engine, [spec])
    assert pieces[0].cached_tokens == (await engine.sample(spec)).cached_tokens > 0


async def test_leaving_a_stream_takes_its_work_out_of_the_engine(
    engine: SGLangEngine, make_adapter: MakeAdapter
) -> None:
    """And lets its adapter go: unloading one that SGLang counts as used would hang."""
    abandoned = make_adapter(2, MLP, seed=310)
    before = engine.stats()["sampled_tokens"]
    async with engine.stream([_spec(1, max_tokens=240), _spec(2, max_tokens=240)], abandoned) as pieces:
        await anext(pieces)
        assert engine.stats()["requests"] == 4
    assert engine.stats()["requests"] == 0
    assert await engine.healthy()
    for index in range(PLACES):  # each takes the place of an older one, in the end of the abandoned one
        await engine.sample(_spec(1, max_tokens=1), make_adapter(2, MLP, seed=311 + index))
    assert engine.stats()["adapters_stuck"] == 0
    assert engine.stats()["sampled_tokens"] < before + 4 * 240
