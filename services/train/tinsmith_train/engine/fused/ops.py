"""The kernels as functions of tensors: grids, block sizes and outputs."""
# pyright: basic, reportCallIssue=false
# What Triton compiles has no types, and takes launch options that its function does not name.

from typing import NamedTuple

import torch
from torch import Tensor

from tinsmith_train.engine.fused import kernels
from tinsmith_train.engine.fused.lora import ROWS, RowPlan
from tinsmith_train.engine.fused.weights import LayerWeights, Shape

A_SIDE, B_SIDE = 0, 1


HEAD_STEPS = 4
"""Heads of a program, forward: finding an adapter's matrices and the rotation takes as long as a head."""

HEAD_STEPS_BACKWARD = 2


class Columns(NamedTuple):
    """Where the columns of neighbouring modules lie in a tensor.

    table: int32 `[modules, 2]` of first column and width, on the device; widest: the largest width; step: a power of
    two that divides all widths.
    """

    table: Tensor
    widest: int
    step: int

    @classmethod
    def of(cls, parts: list[tuple[int, int]], device: torch.device) -> "Columns":
        """Describe modules by (first column, width)."""
        widths = [width for _, width in parts]
        step = min(width & -width for width in widths)
        return cls(torch.tensor(parts, dtype=torch.int32, device=device), max(widths), step)


class Lora:
    """Deltas of one row's adapters on the modules from `first` on."""

    def __init__(self, plan: RowPlan) -> None:
        self._plan = plan

    def project(self, x: Tensor, first: int, columns: Columns, side: int) -> Tensor:
        """D (A side, from a module's input) or GD (B side, from its output's gradient), `[T, modules * R]`."""
        plan, modules = self._plan, len(columns.table)
        out = torch.empty(len(x), modules * plan.rank, dtype=x.dtype, device=x.device)
        kernels.project_kernel[(modules, len(plan.tiles))](
            x, x.stride(0), plan.tiles, plan.table, plan.ranks, plan.scales, plan.adapters, first, columns.table,
            out, out.stride(0),
            SIDE=side, R=plan.rank, ROWS=ROWS, BLOCK=min(128, columns.step),
            num_warps=4, num_stages=3,
        )  # fmt: skip
        return out

    def add(self, y: Tensor, d: Tensor, first: int, modules: int, side: int) -> None:
        """Add the deltas of modules that share `y`, in place."""
        plan, size = self._plan, y.shape[1]
        block = min(128, size & -size)
        kernels.add_delta_kernel[(size // block, len(plan.tiles))](
            y, y.stride(0), d, d.stride(0), plan.tiles, plan.table, plan.ranks, plan.adapters, first, size,
            SIDE=side, MODULES=modules, R=plan.rank, ROWS=ROWS, BLOCK=block,
            num_warps=8, num_stages=2,
        )  # fmt: skip

    def outer(self, wide: Tensor, narrow: Tensor, first: int, columns: Columns, side: int) -> None:
        """Add to the gradients of A (wide: inputs, narrow: GD) or of B (wide: gradients of outputs, narrow: D)."""
        plan = self._plan
        block = min(128, columns.step)
        kernels.outer_kernel[(columns.widest // block, len(columns.table), len(plan.chunks))](
            wide, wide.stride(0), narrow, narrow.stride(0), plan.chunks, plan.table, plan.ranks, plan.adapters,
            first, columns.table,
            SIDE=side, R=plan.rank, ROWS=ROWS, BLOCK=block, num_warps=4, num_stages=4,
        )  # fmt: skip

    def heads(
        self, y: Tensor, d: Tensor, first: int, w: LayerWeights, shape: Shape, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Query, key and value of all heads, `[T, heads * head_dim]`."""
        plan, out = self._plan, torch.empty_like(y)
        steps = _steps(shape.kv_heads, HEAD_STEPS)
        kernels.heads_kernel[(shape.heads // steps, len(plan.tiles))](
            y, y.stride(0), d, d.stride(0), out, plan.tiles, plan.table, plan.ranks, plan.adapters, first, cos, sin,
            *_head_norms(w, y), shape.eps,
            **_head_sizes(w, shape), R=plan.rank, ROWS=ROWS, HALF=shape.head_dim // 2, STEPS=steps,
            num_warps=4, num_stages=3,
        )  # fmt: skip
        return out

    def heads_backward(
        self, y: Tensor, d: Tensor, grads: tuple[Tensor, Tensor, Tensor], first: int, w: LayerWeights, shape: Shape,
        cos: Tensor, sin: Tensor,
    ) -> None:  # fmt: skip
        """The gradient by the projections takes the place of `y`."""
        plan = self._plan
        steps = _steps(shape.kv_heads, HEAD_STEPS_BACKWARD)
        kernels.heads_backward_kernel[(shape.heads // steps, len(plan.tiles))](
            y, y.stride(0), d, d.stride(0), *(grad.contiguous() for grad in grads), plan.tiles, plan.table,
            plan.ranks, plan.adapters, first, cos, sin, *_head_norms(w, y), shape.eps,
            **_head_sizes(w, shape), R=plan.rank, ROWS=ROWS, HALF=shape.head_dim // 2, STEPS=steps,
            num_warps=4, num_stages=3,
        )  # fmt: skip

    def swiglu(self, y: Tensor, d: Tensor, first: int) -> Tensor:
        """`[T, intermediate]` from gate and up, whose modules are `first` and the next."""
        plan, size = self._plan, y.shape[1] // 2
        out = torch.empty(len(y), size, dtype=y.dtype, device=y.device)
        block = min(64, size & -size)
        kernels.swiglu_kernel[(size // block, len(plan.tiles))](
            y, y.stride(0), d, d.stride(0), out, plan.tiles, plan.table, plan.ranks, plan.adapters, first, size,
            R=plan.rank, ROWS=ROWS, BLOCK=block,
            num_warps=8, num_stages=3,
        )  # fmt: skip
        return out

    def swiglu_backward(self, y: Tensor, d: Tensor, act: Tensor, gd: Tensor, first: int) -> None:
        """`y` becomes its gradient and `act`, which holds its own base gradient, the forward's output again."""
        plan, size = self._plan, act.shape[1]
        block = min(64, size & -size)
        kernels.swiglu_backward_kernel[(size // block, len(plan.tiles))](
            y, y.stride(0), d, d.stride(0), act, gd, gd.stride(0), plan.tiles, plan.table, plan.ranks,
            plan.adapters, first, size,
            R=plan.rank, ROWS=ROWS, BLOCK=block,
            num_warps=4, num_stages=3,
        )  # fmt: skip


def norm(h: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm of `s`, which is `h` or `h + y`: `s`, the norm `[T, hidden]` and fp32 `1 / rms` `[T]`."""
    summed = h if y is None else torch.empty_like(h)
    out, rstd = torch.empty_like(h), torch.empty(len(h), dtype=torch.float32, device=h.device)
    size = h.shape[1]
    kernels.norm_kernel[(len(h),)](
        h, h if y is None else y, weight, summed, out, rstd, size, eps,
        ADD=y is not None, BLOCK=_power(size), num_warps=_warps(size),
    )  # fmt: skip
    return summed, out, rstd


def norm_backward(grad: Tensor, h: Tensor, weight: Tensor, rstd: Tensor, grad_h: Tensor | None) -> Tensor:
    """The gradient by what was normed, added to `grad_h` in place if that is given."""
    out = torch.empty_like(h) if grad_h is None else grad_h
    size = h.shape[1]
    kernels.norm_backward_kernel[(len(h),)](
        grad, h, weight, rstd, out, size, ADD=grad_h is not None, BLOCK=_power(size), num_warps=_warps(size)
    )
    return out


def softmax_(logits: Tensor, *, keep: bool) -> Tensor:
    """fp32 `[rows]`: log of the summed exponentials. With `keep`, `logits` is replaced by its softmax."""
    log_sum = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    kernels.softmax_kernel[(len(logits),)](
        logits, log_sum, logits.shape[1], KEEP=keep, BLOCK=4096, num_warps=8
    )
    return log_sum


def _head_norms(w: LayerWeights, y: Tensor) -> tuple[Tensor, Tensor]:
    # A kernel without norms never reads them.
    return (y, y) if w.q_norm is None or w.k_norm is None else (w.q_norm, w.k_norm)


def _head_sizes(w: LayerWeights, shape: Shape) -> dict[str, int | bool]:
    return {"Q_HEADS": shape.q_heads, "KV_HEADS": shape.kv_heads, "NORM": w.q_norm is not None}


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _warps(size: int) -> int:
    return min(16, max(1, size // 512))


def _steps(blocks: int, most: int) -> int:
    """The largest power of two, at most `most`, that divides the number of blocks."""
    return min(most, blocks & -blocks)
