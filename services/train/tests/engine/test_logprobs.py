"""Chunked log-probabilities against a dense log-softmax."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_train.engine.logprobs import Head, LogitMemory, _edges, target_logprobs  # pyright: ignore[reportPrivateUsage]
from tinsmith_train.engine.lora import EMPTY, SpanSet

ROWS, HIDDEN, VOCAB = 23, 12, 31
BOUNDS = ((2, 9, 2.0), (9, 20, 0.5))
"""Rows 0-1 and 20-22 belong to no adapter; the border at 9 lies inside a chunk."""


def make_factors(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, HIDDEN), (VOCAB, 3), (5, HIDDEN), (VOCAB, 5)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def make_problem(dtype: torch.dtype) -> tuple[Tensor, Head, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, generator=generator).to(dtype)
    bias = torch.randn(VOCAB, generator=generator).to(dtype)
    # Several targets for some rows (one of them twice), none for others.
    target_rows = torch.tensor([0, 0, 0, 3, 4, 5, 7, 7, 8, 9, 11, 12, 13, 19, 20, 22])
    targets = torch.randint(0, VOCAB, target_rows.shape, generator=generator)
    targets[1] = targets[0]
    gradient = torch.randn(target_rows.shape, generator=generator)
    return hidden, Head(weight, bias), target_rows, targets, gradient


def dense(hidden: Tensor, head: Head, factors: list[Tensor], target_rows: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, head.weight, head.bias)
    for index, (start, stop, scale) in enumerate(BOUNDS):
        delta = scale * factors[2 * index + 1] @ factors[2 * index]
        own = torch.zeros(ROWS, 1)
        own[start:stop] = 1
        logits = logits + own * F.linear(hidden, delta)
    return F.log_softmax(logits, dim=-1)[target_rows, targets]


@pytest.mark.parametrize("keep_bytes", [0, 10**9], ids=["recomputed", "kept"])
@pytest.mark.parametrize("chunk_rows", [8, 16, 100])
def test_values_and_gradients_equal_a_dense_log_softmax(chunk_rows: int, keep_bytes: int) -> None:
    hidden, head, target_rows, targets, gradient = make_problem(torch.float32)
    factors = make_factors(torch.float32)
    expected = dense(hidden, head, factors, target_rows, targets)
    expected_grads = torch.autograd.grad(expected, [hidden, *factors], gradient)

    memory = LogitMemory(chunk_bytes=4 * VOCAB * chunk_rows, keep_bytes=keep_bytes)
    sinks = [torch.zeros_like(factor) for factor in factors]
    spans = SpanSet(BOUNDS, tuple(factors), tuple(sinks))
    actual = target_logprobs(hidden, head, spans, target_rows, targets, memory, single=False)
    grads = [*torch.autograd.grad(actual, [hidden], gradient), *sinks]

    # fp32 sums of at most 31 terms of order 10 in another order.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("single", [False, True], ids=["several targets a row", "at most one"])
def test_without_adapters_the_head_passes_gradient_to_hidden_only(single: bool) -> None:
    hidden, head, target_rows, targets, gradient = make_problem(torch.float32)
    if single:
        target_rows, places = target_rows.unique(return_inverse=True)
        targets, gradient = (
            x.new_zeros(len(target_rows)).index_copy(0, places, x) for x in (targets, gradient)
        )
    expected = F.log_softmax(F.linear(hidden, head.weight, head.bias), dim=-1)[target_rows, targets]
    memory = LogitMemory(1, 0)
    actual = target_logprobs(hidden, head, EMPTY, target_rows, targets, memory, single=single)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(actual, hidden, gradient)[0],
        torch.autograd.grad(expected, hidden, gradient)[0],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_chunk_cuts_a_span_only_when_it_is_longer_and_then_by_itself(size: int) -> None:
    bounds = ((0, 8, 1.0), (8, 16, 1.0), (24, 64, 1.0), (64, 72, 1.0))
    edges = _edges(80, bounds, size)
    assert (edges[0], edges[-1]) == (0, 80)
    assert all(0 < stop - start <= size for start, stop in pairwise(edges))
    for start, stop, _ in bounds:
        cuts = [edge - start for edge in edges if start < edge < stop]
        assert cuts == (list(range(size, stop - start, size)) if stop - start > size else [])
