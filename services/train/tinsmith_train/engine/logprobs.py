"""Log-probabilities of targets from hidden states, without ever holding the logits of a whole batch.

The vocabulary projection runs on chunks of rows. When the log-softmax of all chunks fits `keep_bytes` it is
kept for the backward pass; otherwise each chunk is computed again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_train.engine.families import LogitMap
from tinsmith_train.engine.lora import Bound, SpanSet, add_deltas, deltas_backward, whole_factors
from tinsmith_train.engine.packing import ROW_STEP


@dataclass(frozen=True)
class Head:
    """The frozen output projection: weight `[vocab, hidden]` (which the embedding may share), bias `[vocab]`.

    map: what the model does to the logits after it.
    """

    weight: Tensor
    bias: Tensor | None
    map: LogitMap = field(default_factory=LogitMap)


@dataclass(frozen=True)
class LogitMemory:
    """How much memory logits may take.

    chunk_bytes: fp32 logits of one chunk. keep_bytes: log-softmax kept between forward and backward.
    """

    chunk_bytes: int
    keep_bytes: int

    def chunk_rows(self, vocab_size: int) -> int:
        """Rows of a chunk: whole steps of rows, for the sake of `packing.ROW_STEP`."""
        return max(ROW_STEP, self.chunk_bytes // (4 * vocab_size) // ROW_STEP * ROW_STEP)


def target_logprobs(
    hidden: Tensor,
    head: Head,
    spans: SpanSet,
    target_rows: Tensor,
    targets: Tensor,
    memory: LogitMemory,
    *,
    single: bool,
) -> Tensor:
    """fp32 `[M]`: log-probability of `targets[j]` under the softmax at row `target_rows[j]`.

    hidden `[T, hidden]`; target_rows int64 `[M]`, never falling, with `single` always rising; targets int64 `[M]`.
    Differentiable in `hidden`; the gradients of the factors of `spans` are added to their sinks.
    """
    if single and not spans.bounds and head.map == LogitMap():
        whole = len(targets) == len(hidden)
        wanted = targets if whole else targets.new_zeros(len(hidden)).index_copy(0, target_rows, targets)
        frozen: Tensor = _FrozenHead.apply(hidden, head, wanted, memory)
        return frozen if whole else frozen.index_select(0, target_rows)
    result: Tensor = _TargetLogprobs.apply(hidden, head, target_rows, targets, memory, spans, *spans.factors)
    return result


class _FrozenHead(torch.autograd.Function):
    """One target a row under a head without deltas.

    The gradient of a row's logprob by its hidden state is `W[target] - softmax(logits) @ W`, whatever the loss. So
    that second term is made while the logits exist, and the backward pass needs neither them nor a matmul.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, memory: LogitMemory) -> Tensor:
        keep = bool(ctx.needs_input_grad[0])
        result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        mean = torch.empty_like(hidden) if keep else None
        size = memory.chunk_rows(head.weight.shape[0])
        for rows, wanted, sink in zip(
            hidden.split(size), targets.split(size), range(0, len(hidden), size), strict=True
        ):
            logits = F.linear(rows, head.weight, head.bias)
            chosen = logits.gather(1, wanted[:, None])[:, 0].float()
            log_sum = _softmax_(logits, keep=keep)
            result[sink : sink + size] = chosen - log_sum
            if mean is not None:
                torch.mm(logits, head.weight, out=mean[sink : sink + size])
        ctx.head = head
        ctx.save_for_backward(mean, targets)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        mean, targets = ctx.saved_tensors
        g = F.embedding(targets, ctx.head.weight).sub_(mean).mul_(grad_outputs[0][:, None].to(mean.dtype))
        return g, None, None, None


def _softmax_(logits: Tensor, *, keep: bool) -> Tensor:
    """fp32 log of the summed exponentials of each row. With `keep`, `logits` is replaced by its softmax."""
    if logits.is_cuda:
        from tinsmith_train.engine.fused import ops  # needs Triton

        return ops.softmax_(logits, keep=keep)
    log_sum = torch.logsumexp(logits.float(), dim=1)
    if keep:
        logits.sub_(log_sum[:, None].to(logits.dtype)).exp_()
    return log_sum


@dataclass(frozen=True)
class _Chunk:
    """Rows `[start, stop)`, their targets `[first, last)`, and the spans cut to these rows."""

    start: int
    stop: int
    first: int
    last: int
    bounds: tuple[Bound, ...]
    spans: tuple[int, ...]

    def of_spans(self, pairs: Sequence[Tensor]) -> list[Tensor]:
        """Of two tensors for each span of the row, those of the chunk's spans."""
        return [pairs[2 * span + side] for span in self.spans for side in (0, 1)]

    def cells(self, target_rows: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        """Places of the targets in the flattened `[rows, vocab]` chunk."""
        rows = target_rows[self.first : self.last] - self.start
        return rows * vocab_size + targets[self.first : self.last]


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Head,
        target_rows: Tensor,
        targets: Tensor,
        memory: LogitMemory,
        spans: SpanSet,
        *factors: Tensor,
    ) -> Tensor:
        vocab_size = head.weight.shape[0]
        fits = hidden.shape[0] * vocab_size * 4 <= memory.keep_bytes
        keep = any(ctx.needs_input_grad) and fits and head.map == LogitMap()
        chunks = list(_chunks(hidden.shape[0], vocab_size, target_rows, spans.bounds, memory))
        result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        kept: list[Tensor] = []
        for chunk in chunks:
            log_softmax, _, _ = _log_softmax(hidden[chunk.start : chunk.stop], head, chunk, factors)
            result[chunk.first : chunk.last] = log_softmax.take(chunk.cells(target_rows, targets, vocab_size))
            if keep:
                kept.append(log_softmax)
        ctx.head, ctx.chunks, ctx.kept, ctx.sinks = head, chunks, kept, spans.sinks
        ctx.save_for_backward(hidden, target_rows, targets, *factors)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, target_rows, targets, *factors = ctx.saved_tensors
        weight: Tensor = ctx.head.weight
        g_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for index, chunk in enumerate(ctx.chunks):
            rows = hidden[chunk.start : chunk.stop]
            mine = chunk.of_spans(factors)
            slope: Tensor | float = 1.0
            if ctx.kept:
                log_softmax, downs = ctx.kept[index], _downs(rows, chunk, mine)
            else:
                log_softmax, downs, slope = _log_softmax(rows, ctx.head, chunk, factors)
            g_logits = _logits_gradient(log_softmax, grad_outputs[0], chunk, target_rows, targets)
            g_logits = g_logits.mul_(slope).to(weight.dtype)
            g_rows = g_logits @ weight if g_hidden is not None else None
            deltas_backward(g_logits, rows, downs, chunk.bounds, mine, chunk.of_spans(ctx.sinks), g_rows)
            if g_hidden is not None and g_rows is not None:
                g_hidden[chunk.start : chunk.stop] = g_rows
        ctx.kept = None
        return (g_hidden, None, None, None, None, None, *(None for _ in factors))


def _chunks(
    rows: int, vocab_size: int, target_rows: Tensor, bounds: Sequence[Bound], memory: LogitMemory
) -> Iterator[_Chunk]:
    edges = _edges(rows, bounds, memory.chunk_rows(vocab_size))
    firsts = torch.searchsorted(target_rows, torch.tensor(edges, device=target_rows.device)).tolist()
    for place, (start, stop) in enumerate(pairwise(edges)):
        cut = {
            index: (max(low, start) - start, min(high, stop) - start, scale)
            for index, (low, high, scale) in enumerate(bounds)
            if low < stop and high > start
        }
        yield _Chunk(start, stop, firsts[place], firsts[place + 1], tuple(cut.values()), tuple(cut))


def _edges(rows: int, bounds: Sequence[Bound], size: int) -> list[int]:
    """Where chunks of at most `size` rows begin, and the end.

    A span is cut only when it is longer than a chunk, and then by its own length alone: the gradients of its factors
    are sums over chunks.
    """
    edges = [0]
    owned = sorted({0, rows, *(edge for start, stop, _ in bounds for edge in (start, stop))})
    for start, stop in pairwise(owned):
        if stop - edges[-1] > size:
            edges += range(start, stop, size)
    return sorted({*edges, rows})


def _log_softmax(
    rows: Tensor, head: Head, chunk: _Chunk, factors: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor | float]:
    """fp32 `[rows, vocab]`, the spans' `scale x A^T`, and the slope of the logits' map."""
    logits = F.linear(rows, head.weight, head.bias)
    downs = add_deltas(logits, rows, chunk.bounds, chunk.of_spans(factors))
    logits, slope = mapped_logits(logits, head.map)
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32), downs, slope


def mapped_logits(logits: Tensor, change: LogitMap) -> tuple[Tensor, Tensor | float]:
    """The model's own change of its logits, and its derivative; with a cap both are fp32."""
    if change.softcap is None:
        return (logits, 1.0) if change.scale == 1.0 else (logits * change.scale, change.scale)
    bent = torch.tanh(logits.float() * (change.scale / change.softcap))
    return bent * change.softcap, (1 - bent * bent) * change.scale


def _downs(rows: Tensor, chunk: _Chunk, factors: Sequence[Tensor]) -> list[Tensor]:
    downs: list[Tensor] = []
    for index, (start, stop, scale) in enumerate(chunk.bounds):
        a, _ = whole_factors(factors[2 * index], factors[2 * index + 1], rows)
        downs.append((rows[start:stop] @ a.T).mul_(scale))
    return downs


def _logits_gradient(
    log_softmax: Tensor, g_logprobs: Tensor, chunk: _Chunk, target_rows: Tensor, targets: Tensor
) -> Tensor:
    """Gradient by the logits, `sum_k g_k (onehot_k - softmax)` in each row; overwrites `log_softmax`."""
    g = g_logprobs[chunk.first : chunk.last]
    local = target_rows[chunk.first : chunk.last] - chunk.start
    totals = g.new_zeros(chunk.stop - chunk.start).index_add_(0, local, g)
    g_logits = log_softmax.exp_().mul_(totals.neg_().unsqueeze(1))
    cells = chunk.cells(target_rows, targets, log_softmax.shape[1])
    g_logits.view(-1).scatter_add_(0, cells, g)
    return g_logits
