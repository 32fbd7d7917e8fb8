"""Chunked log-probabilities against a dense log-softmax."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_train.engine.logprobs import Head, LogitMemory, target_logprobs
from tinsmith_train.engine.lora import SpanSet

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
@pytest.mark.parametrize("chunk_rows", [1, 6, 100])
def test_values_and_gradients_equal_a_dense_log_softmax(chunk_rows: int, keep_bytes: int) -> None:
    hidden, head, target_rows, targets, gradient = make_problem(torch.float32)
    factors = make_factors(torch.float32)
    expected = dense(hidden, head, factors, target_rows, targets)
    expected_grads = torch.autograd.grad(expected, [hidden, *factors], gradient)

    memory = LogitMemory(chunk_bytes=4 * VOCAB * chunk_rows, keep_bytes=keep_bytes)
    actual = target_logprobs(hidden, head, SpanSet(BOUNDS, tuple(factors)), target_rows, targets, memory)
    grads = torch.autograd.grad(actual, [hidden, *factors], gradient)

    # fp32 sums of at most 31 terms of order 10 in another order.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_without_adapters_the_head_passes_gradient_to_hidden_only() -> None:
    hidden, head, target_rows, targets, gradient = make_problem(torch.float32)
    expected = F.log_softmax(F.linear(hidden, head.weight, head.bias), dim=-1)[target_rows, targets]
    actual = target_logprobs(hidden, head, SpanSet((), ()), target_rows, targets, LogitMemory(1, 0))
    torch.testing.assert_close(
        torch.autograd.grad(actual, hidden, gradient)[0],
        torch.autograd.grad(expected, hidden, gradient)[0],
        rtol=1e-5,
        atol=1e-5,
    )
