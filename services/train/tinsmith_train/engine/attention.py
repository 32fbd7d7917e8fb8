"""Causal attention inside each sequence of a packed row, plugged into Hugging Face models by name."""

from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED_ATTENTION = "tinsmith_packed"
"""What to pass as `attn_implementation`. The model's forward must then be given `packed=PackedRow`."""


@dataclass(frozen=True)
class PackedRow:
    """Where the sequences of a row lie.

    runs:       (count, length) of neighbours of equal length, which attend as one batch, in order.
    cu_seqlens: int32 `[sequences + 1]` on the model's device.
    longest:    length of the longest sequence.
    """

    runs: tuple[tuple[int, int], ...]
    cu_seqlens: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> "PackedRow":
        """Describe a row of sequences with these lengths, in order."""
        runs = tuple((len(list(same)), length) for length, same in groupby(lengths))
        bounds = torch.from_numpy(np.cumsum((0, *lengths), dtype=np.int32)).to(device)
        return cls(runs, bounds, max(lengths))


def register_packed_attention() -> None:
    """Make `PACKED_ATTENTION` known to transformers. May be called again."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedRow,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of one packed row of T tokens.

    query `[1, heads, T, dim]`, key and value `[1, kv_heads, T, dim]` -> `[1, T, heads, dim]`.
    """
    if options.get("s_aux") is not None:
        raise NotImplementedError("attention with sinks is not supported by packed rows")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and softcap is None:
        return _varlen(query, key, value, packed, scaling, sliding_window), None
    attend = _attend if softcap is None else partial(_attend_capped, softcap=softcap)
    # Split in one operation: a slice for each run would make the backward pass write the whole row once a run.
    sizes = [count * length for count, length in packed.runs]
    queries, keys, values = (states[0].split(sizes, dim=1) for states in (query, key, value))
    outputs = [
        attend(_batch(q, run), _batch(k, run), _batch(v, run), scaling, sliding_window)
        for run, q, k, v in zip(packed.runs, queries, keys, values, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def _batch(states: Tensor, run: tuple[int, int]) -> Tensor:
    """`[heads, count * length, dim]` seen as `[count, heads, length, dim]`."""
    return states.unflatten(1, run).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """`[count, heads, length, dim]` each -> `[1, count * length, heads, dim]`."""
    length = query.shape[2]
    mask = None if window is None or length <= window else _mask(length, window, query.device)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _attend_capped(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, *, softcap: float
) -> Tensor:
    """As `_attend`, with scores `softcap * tanh(score / softcap)`, which no fused kernel of torch knows.

    Holds the scores, `[count, heads, length, length]` in the dtype of the model and once more in fp32.
    """
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ keys.mT) * (scaling or query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    mask = _mask(query.shape[2], window, query.device)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32)
    return (weights.to(query.dtype) @ values).transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys (columns) a query sees: its own and earlier ones, `window` in all."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() if window is None else ones.tril() & ones.triu(1 - window)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scaling: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    if "enable_gqa" in signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    else:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    bounds = row.cu_seqlens
    output: Any = varlen_attn(q, k, v, bounds, bounds, row.longest, row.longest, **options)
    return output.unsqueeze(0)
