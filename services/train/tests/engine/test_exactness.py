"""A tenant's numbers do not depend on who shares the pass: bit for bit on a CPU, within a bound on a GPU.

`TINSMITH_TEST_DEVICE=cuda` runs the same on a GPU in bfloat16; `exactness.py` prints the figures without pytest.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinsmith_train.engine.activations import SteadySiLU, SteadyTanhGELU
from tinsmith_train.engine.losses import steady_sum
from tinsmith_train.engine.types import (
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    PassPart,
    TrainerLimits,
)

from . import exactness
from .exactness import TENANTS, Outcome, Tenant, make_datum, make_trainer, run

EXACT = exactness.DEVICE == "cpu"
on_cpu = pytest.mark.skipif(not EXACT, reason="holds on a CPU only")
some = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

BOUNDS = {"logprobs": 0.1, "metrics": 10.0, "gradients": 0.1, "weights": 0.1, "moments": 0.2}
"""bfloat16 keeps 8 bits: logprobs of logits of some tens are 0.1 apart, and all else follows from them."""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(actual: Outcome, expected: Outcome) -> None:
    difference = actual.difference(expected)
    if EXACT:
        assert actual.equals(expected), difference
    else:
        assert all(difference[kind] <= bound for kind, bound in BOUNDS.items()), difference


@pytest.fixture(scope="module")
def alone() -> dict[str, Outcome]:
    return {name: run({name: tenant})[name] for name, tenant in TENANTS.items()}


@pytest.mark.parametrize("reverse", [False, True], ids=["first come", "last come"])
@pytest.mark.parametrize("tokens_per_pass", [None, 128, 16], ids=["one row", "some rows", "many rows"])
def test_tenants_in_one_pass_get_what_they_get_alone(
    alone: dict[str, Outcome], tokens_per_pass: int | None, reverse: bool
) -> None:
    limits = TrainerLimits(tokens_per_pass=tokens_per_pass)
    merged = run(TENANTS, limits=limits, reverse=reverse, noise=(1, 50, 130))
    for name, outcome in merged.items():
        assert_same(outcome, alone[name])


def test_the_comparison_would_see_a_difference(alone: dict[str, Outcome]) -> None:
    moved = run({"small": Tenant(LoraSpec(3, seed=1), ((1,), (70, 9)), "ppo")})["small"]
    assert not moved.equals(alone["small"])
    assert min(moved.difference(alone["small"]).values()) > 1e-4


@on_cpu
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_number_of_threads_changes_nothing(alone: dict[str, Outcome], count: int) -> None:
    """A worker runs small passes on one thread, and what is small depends on who else is there."""
    torch.set_num_threads(count)
    for name, outcome in run(TENANTS).items():
        assert_same(outcome, alone[name])


@pytest.mark.parametrize("name", TENANTS)
def test_submissions_give_what_they_give_one_by_one(name: str, alone: dict[str, Outcome]) -> None:
    """A lane's passes may run together or not, as they happen to arrive."""
    trainer, together = make_trainer(), make_trainer()
    work = exactness.submissions(name, TENANTS[name], 0)
    for each in (trainer, together):
        each.create_adapter(name, TENANTS[name].spec)
    for item in work:
        trainer.forward_backward([item])
    together.forward_backward(work)
    one_by_one, at_once = trainer.adapter(name).grad, together.adapter(name).grad
    assert at_once.abs().max() > 1e-3
    if EXACT:
        assert torch.equal(one_by_one, at_once)
    else:
        torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=0.1 * float(at_once.abs().max()))


@given(
    length=st.integers(1, 90),
    others=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    place=st.integers(0, 6),
    count=st.sampled_from([1, 2, 3]),
    spec=st.sampled_from([TENANTS[name].spec for name in ("small", "large", "head")]),
    looks=st.booleans(),
)
@some
def test_a_datum_s_logprobs_do_not_depend_on_its_batch(
    length: int, others: list[int], place: int, count: int, spec: LoraSpec, looks: bool
) -> None:
    torch.set_num_threads(count)
    trainer = make_trainer()
    trainer.create_adapter("a", spec)
    trainer.adapter("a").weights.data.normal_(std=0.05)
    datum = make_datum(0, length)
    batch = [make_datum(100 + i, n) for i, n in enumerate(others)]
    place = min(place, len(batch))
    batch.insert(place, datum)
    (single,) = trainer.forward_backward([ForwardBackward("a", (datum,), "cross_entropy", forward_only=True)])
    (among,) = trainer.forward_backward(
        [ForwardBackward("a", tuple(batch), "cross_entropy", forward_only=looks)]
    )
    assert isinstance(single, ForwardBackwardResult)
    assert isinstance(among, ForwardBackwardResult)
    if EXACT:
        np.testing.assert_array_equal(among.logprobs[place], single.logprobs[0])
    else:
        np.testing.assert_allclose(among.logprobs[place], single.logprobs[0], atol=BOUNDS["logprobs"])


@given(
    lengths=st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=3), min_size=2, max_size=3),
    ranks=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    budget=st.sampled_from([8, 64, 256]),
    piece=st.sampled_from([8, 32, 1024]),
)
@some
def test_any_mix_of_tenants_leaves_each_as_if_alone(
    lengths: list[list[int]], ranks: list[int], budget: int, piece: int
) -> None:
    losses = ("cross_entropy", "ppo", "cispo", "importance_sampling")
    tenants = {
        f"t{i}": Tenant(LoraSpec(ranks[i], seed=i, train_unembed=i % 2 == 0), (tuple(own),), losses[i])
        for i, own in enumerate(lengths)
    }
    limits = TrainerLimits(tokens_per_pass=budget, tokens_per_piece=piece)
    merged = run(tenants, cycles=1, limits=limits, reverse=True)
    same_pieces = TrainerLimits(tokens_per_piece=piece)
    for name, tenant in tenants.items():
        assert_same(merged[name], run({name: tenant}, cycles=1, limits=same_pieces)[name])


@on_cpu
def test_ten_steps_repeated_are_bitwise_the_same() -> None:
    one, two = (run(TENANTS, cycles=10) for _ in range(2))
    for name in TENANTS:
        assert one[name].equals(two[name])


@on_cpu
@pytest.mark.parametrize("count", [1, 2, 3])
def test_activations_and_sums_do_not_see_where_a_value_lies(count: int) -> None:
    torch.set_num_threads(count)
    rows = torch.randn(1501, 67, generator=torch.Generator().manual_seed(0)) * 4
    for activation in (SteadySiLU(), SteadyTanhGELU()):
        whole = rows.clone().requires_grad_()
        activation(whole).backward(rows)
        for start, stop in ((0, 1), (3, 26), (500, 1501)):
            part = rows[start:stop].clone().requires_grad_()
            activation(part).backward(rows[start:stop])
            assert torch.equal(activation(part), activation(whole)[start:stop])
            assert whole.grad is not None
            assert part.grad is not None
            assert torch.equal(part.grad, whole.grad[start:stop])
    sums = steady_sum(rows.flatten())
    torch.set_num_threads(5)
    assert torch.equal(steady_sum(rows.flatten()), sums)


def test_activations_equal_torch_s_own() -> None:
    x = (torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6).float()
    for ours, reference in ((SteadySiLU(), torch.nn.SiLU()), (SteadyTanhGELU(), torch.nn.GELU("tanh"))):
        mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        y, expected = ours(mine), reference(exact)
        y.sum().backward()
        expected.sum().backward()
        assert mine.grad is not None
        # fp32 against fp64: values up to 24, slopes about 1.
        torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-6, atol=2e-6)


@on_cpu
def test_a_pass_in_parts_gives_what_its_parts_give_without_company() -> None:
    """The scheduler cuts a long pass by its own datums; who is beside each part, and on how many threads, is chance."""
    hog = ForwardBackward(
        "hog", tuple(make_datum(n, n) for n in (40, 9, 61, 17, 33, 3)), "ppo", elementwise=True
    )
    outcomes: list[tuple[ForwardBackwardResult, torch.Tensor]] = []
    for company in ((), (7, 130, 1, 50)):
        torch.set_num_threads(3 if company else 1)
        trainer = make_trainer(TrainerLimits(tokens_per_pass=64))
        for name, rank in (("hog", 5), ("other", 24)):
            trainer.create_adapter(name, LoraSpec(rank, seed=rank))
        answer: object = None
        for place, (first, last) in enumerate(pairwise((0, 2, 3, 5, 6))):
            tokens = sum(len(datum.tokens) for datum in hog.datums[first:last])
            beside = [ForwardBackward("other", (make_datum(n, n),), "cross_entropy") for n in company]
            parts = [
                *(PassPart.whole(f"{place} {number}", item) for number, item in enumerate(beside)),
                PassPart("hog", first, last, tokens, None if first else hog),
            ]
            *others, answer = trainer.run_parts(parts)
            assert all(isinstance(other, ForwardBackwardResult) for other in others)
        assert isinstance(answer, ForwardBackwardResult)
        outcomes.append((answer, trainer.adapter("hog").grad))
    (alone, alone_grad), (among, among_grad) = outcomes
    assert among.metrics == alone.metrics
    for mine, theirs in zip(
        (*among.logprobs, *among.elementwise_loss), (*alone.logprobs, *alone.elementwise_loss), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert alone_grad.abs().max() > 1e-3
    assert torch.equal(among_grad, alone_grad)
