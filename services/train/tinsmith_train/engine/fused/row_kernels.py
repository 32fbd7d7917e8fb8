"""Triton kernels on single rows: RMS norm and softmax. One program does one row; all sums are fp32."""
# pyright: basic, reportGeneralTypeIssues=false
# See `kernels`.

import triton
import triton.language as tl


@triton.jit
def norm_kernel(
    h, y, weight, summed, out, rstd, size, eps,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """RMS norm of one row: `out = weight * s / rms(s)`, where `s` is `h`, or `h + y` which goes to `summed`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    x = tl.load(h + row * size + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(y + row * size + columns, mask=mask, other=0.0).to(tl.float32)
        x = x.to(h.dtype.element_ty)
        tl.store(summed + row * size + columns, x, mask=mask)
        x = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    tl.store(rstd + row, inverse)
    normed = (x * inverse).to(h.dtype.element_ty).to(tl.float32)
    w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, (normed * w).to(out.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward_kernel(
    grad_out, h, weight, rstd, grad_h, grad_stride, size,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient by `h` of the RMS norm of one row, added to `grad_h` (or written to it) in place."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    where = row * size + columns
    inverse = tl.load(rstd + row)
    normed = tl.load(h + where, mask=mask, other=0.0).to(tl.float32) * inverse
    g = tl.load(grad_out + where, mask=mask, other=0.0).to(tl.float32)
    g *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    g = inverse * (g - normed * (tl.sum(g * normed, 0) / size))
    if ADD:
        g += tl.load(grad_h + row * grad_stride + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad_h + row * grad_stride + columns, g.to(grad_h.dtype.element_ty), mask=mask)


@triton.jit
def softmax_kernel(logits, log_sum, size, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """Log of the sum of exponentials of one row of logits; with KEEP the row becomes its softmax."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, size, BLOCK):
        mask = begin + columns < size
        x = tl.load(logits + row * size + begin + columns, mask=mask, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(best, x)
        total = tl.where(higher == float("-inf"), 0.0, total * tl.exp(best - higher) + tl.exp(x - higher))
        best = higher
    top = tl.max(best, 0)
    norm = top + tl.log(tl.sum(total * tl.exp(best - top), 0))
    tl.store(log_sum + row, norm)
    if KEEP:
        for begin in range(0, size, BLOCK):
            mask = begin + columns < size
            at = logits + row * size + begin + columns
            x = tl.load(at, mask=mask, other=float("-inf")).to(tl.float32)
            tl.store(at, tl.exp(x - norm).to(logits.dtype.element_ty), mask=mask)
