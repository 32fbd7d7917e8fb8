"""Triton kernels: LoRA on rows of many adapters, fused with the point-wise parts of a decoder layer.

Rows of a packed batch belong to adapters. A *tile* is a few rows of one adapter: (first row, rows, adapter number).
An adapter's matrices are found by address, in a table `[module, adapter, 4]` of A, B (both in the rows' dtype), the
gradient of A and that of B (both fp32); A lies as `[rank, in]`, B as `[rank, out]`. `D` is what A makes of the rows,
times the adapter's scale, and `GD` what B makes of the rows' gradient, times the scale; both are `[rows, modules * R]`,
where R is the padded rank of the batch. All sums are fp32.
"""
# pyright: basic, reportGeneralTypeIssues=false
# Triton is there with CUDA builds of torch only, and its kernels are a language of their own.

import triton
import triton.language as tl

A_SIDE = tl.constexpr(0)
B_SIDE = tl.constexpr(1)


@triton.jit
def _tile(tiles, tile):
    """First row, number of rows and adapter number of a tile."""
    return tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)


@triton.jit
def _factor(table, module, adapter, adapters, SIDE: tl.constexpr, dtype):
    """Address of an adapter's matrix as a pointer."""
    address = tl.load(table + ((module * adapters + adapter) * 4 + SIDE))
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def _narrow(d, d_stride, rows, row_mask, slot, R: tl.constexpr):
    """D (or GD) of one module, `[rows, R]`."""
    at = d + rows[:, None] * d_stride + slot * R + tl.arange(0, R)[None, :]
    return tl.load(at, mask=row_mask[:, None], other=0.0)


@triton.jit
def _delta(left, factor, rank, columns, size, R: tl.constexpr):
    """fp32 `[rows, columns]`: D (or GD) of one module times its factor; zero for an adapter without the module."""
    ranks = tl.arange(0, R)
    at = factor + ranks[:, None] * size + columns[None, :]
    right = tl.load(at, mask=(ranks < rank)[:, None], other=0.0)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def project_kernel(
    x, x_stride, tiles, table, ranks, scales, adapters, first_module, columns, out, out_stride,
    SIDE: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out[:, slot] = scale * x @ A^T` (A side) or `scale * x @ B` (B side), for one module a program.

    columns: int32 `[modules, 2]`, where in `x` a module's columns begin and how many there are.
    """
    slot, tile = tl.program_id(0), tl.program_id(1)
    start, count, adapter = _tile(tiles, tile)
    module = first_module + slot
    rank = tl.load(ranks + module * adapters + adapter)
    begin = tl.multiple_of(tl.load(columns + slot * 2), 16)
    size = tl.multiple_of(tl.load(columns + slot * 2 + 1), 16)
    rows = start.to(tl.int64) + tl.arange(0, ROWS)
    row_mask = tl.arange(0, ROWS) < count
    rs = tl.arange(0, R)
    total = tl.zeros((ROWS, R), dtype=tl.float32)
    if rank > 0:
        factor = _factor(table, module, adapter, adapters, SIDE, x.dtype.element_ty)
        for k in range(0, size, BLOCK):
            ks = k + tl.arange(0, BLOCK)
            left = tl.load(
                x + rows[:, None] * x_stride + begin + ks[None, :], mask=row_mask[:, None], other=0.0
            )
            right = tl.load(factor + rs[None, :] * size + ks[:, None], mask=(rs < rank)[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        total *= tl.load(scales + adapter)
    where = out + rows[:, None] * out_stride + slot * R + rs[None, :]
    tl.store(where, total.to(out.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def add_delta_kernel(
    y, y_stride, d, d_stride, tiles, table, ranks, adapters, first_module, size,
    SIDE: tl.constexpr, MODULES: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`y += D @ B^T` (B side), or the sum over modules of `GD @ A` (A side). `size` is the columns of `y`."""
    tile, block = tl.program_id(1), tl.program_id(0)
    start, count, adapter = _tile(tiles, tile)
    rows = start.to(tl.int64) + tl.arange(0, ROWS)
    row_mask = tl.arange(0, ROWS) < count
    columns = block * BLOCK + tl.arange(0, BLOCK)
    where = y + rows[:, None] * y_stride + columns[None, :]
    total = tl.load(where, mask=row_mask[:, None], other=0.0).to(tl.float32)
    for slot in tl.static_range(MODULES):
        module = first_module + slot
        rank = tl.load(ranks + module * adapters + adapter)
        if rank > 0:
            factor = _factor(table, module, adapter, adapters, SIDE, y.dtype.element_ty)
            left = _narrow(d, d_stride, rows, row_mask, slot, R)
            total += _delta(left, factor, rank, columns, size, R)
    tl.store(where, total.to(y.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def outer_kernel(
    wide, wide_stride, narrow, narrow_stride, chunks, table, ranks, adapters, first_module, columns,
    SIDE: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to gradients: of A, `GD^T @ x` (wide = x, narrow = GD); of B, `gy^T @ D` (wide = gy, narrow = D).

    One program is one block of a module's columns over one chunk of rows. Chunks of one adapter are added atomically.
    """
    block, slot, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, count, adapter = _tile(chunks, chunk)
    module = first_module + slot
    rank = tl.load(ranks + module * adapters + adapter)
    begin = tl.multiple_of(tl.load(columns + slot * 2), 16)
    size = tl.multiple_of(tl.load(columns + slot * 2 + 1), 16)
    if (rank > 0) & (block * BLOCK < size):
        cs = block * BLOCK + tl.arange(0, BLOCK)
        rs = tl.arange(0, R)
        total = tl.zeros((R, BLOCK), dtype=tl.float32)
        for offset in range(0, count, ROWS):
            rows = start.to(tl.int64) + offset + tl.arange(0, ROWS)
            mask = offset + tl.arange(0, ROWS) < count
            left = tl.load(
                narrow + rows[None, :] * narrow_stride + slot * R + rs[:, None], mask=mask[None, :], other=0.0
            )
            right = tl.load(
                wide + rows[:, None] * wide_stride + begin + cs[None, :], mask=mask[:, None], other=0.0
            )
            total = tl.dot(left, right, total, input_precision="ieee")
        sink = _factor(table, module, adapter, adapters, SIDE + 2, tl.float32)
        tl.atomic_add(
            sink + rs[:, None] * size + cs[None, :], total, mask=(rs < rank)[:, None], sem="relaxed"
        )


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
    grad_out, h, weight, rstd, grad_h, size,
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
        g += tl.load(grad_h + where, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad_h + where, g.to(grad_h.dtype.element_ty), mask=mask)


@triton.jit
def _head_slot(head, Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr):
    """Which of query, key and value a head belongs to, and the first head of that."""
    slot = (head >= Q_HEADS).to(tl.int32) + (head >= Q_HEADS + KV_HEADS).to(tl.int32)
    return slot, tl.where(slot == 0, 0, tl.where(slot == 1, Q_HEADS, Q_HEADS + KV_HEADS))


@triton.jit
def _rotary(cos, sin, rows, mask, HALF: tl.constexpr):
    at = rows[:, None] * HALF + tl.arange(0, HALF)[None, :]
    return tl.load(cos + at, mask=mask[:, None], other=0.0), tl.load(sin + at, mask=mask[:, None], other=0.0)


@triton.jit
def _head_halves(y, at, row_mask, left, factor, rank, columns, width, R: tl.constexpr, HALF: tl.constexpr):
    """Both halves of one head's columns with the adapter's delta, fp32 `[rows, HALF]`."""
    one = tl.load(y + at, mask=row_mask[:, None], other=0.0).to(tl.float32)
    two = tl.load(y + at + HALF, mask=row_mask[:, None], other=0.0).to(tl.float32)
    one += _delta(left, factor, rank, columns, width, R)
    two += _delta(left, factor, rank, columns + HALF, width, R)
    return one, two


@triton.jit
def heads_kernel(
    y, y_stride, d, d_stride, out, tiles, table, ranks, adapters, first_module, cos, sin, q_norm, k_norm, eps,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, NORM: tl.constexpr,
    R: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """STEPS heads of query, key or value: base output plus delta, head norm, rotary position; `out` is laid out as `y`.

    cos, sin: fp32 `[rows, HALF]`. The head norm and the rotation leave values alone.
    """
    group, tile = tl.program_id(0), tl.program_id(1)
    start, count, adapter = _tile(tiles, tile)
    rows = start.to(tl.int64) + tl.arange(0, ROWS)
    row_mask = tl.arange(0, ROWS) < count
    slot, begin_head = _head_slot(group * STEPS, Q_HEADS, KV_HEADS)
    module = first_module + slot
    width = tl.multiple_of(tl.where(slot == 0, Q_HEADS, KV_HEADS) * 2 * HALF, 16)
    rank = tl.load(ranks + module * adapters + adapter)
    factor = _factor(table, module, adapter, adapters, B_SIDE, y.dtype.element_ty)
    left = _narrow(d, d_stride, rows, row_mask, slot, R)
    low = tl.arange(0, HALF)
    turns = slot < 2
    c, s = _rotary(cos, sin, rows, row_mask & turns, HALF)
    weight = q_norm
    if slot == 1:
        weight = k_norm
    for step in range(STEPS):
        head = group * STEPS + step
        at = rows[:, None] * y_stride + head * 2 * HALF + low[None, :]
        columns = (head - begin_head) * 2 * HALF + low
        one, two = _head_halves(y, at, row_mask, left, factor, rank, columns, width, R, HALF)
        if turns:
            if NORM:
                inverse = tl.rsqrt((tl.sum(one * one, 1) + tl.sum(two * two, 1)) / (2 * HALF) + eps)[:, None]
                one = one * inverse * tl.load(weight + low).to(tl.float32)[None, :]
                two = two * inverse * tl.load(weight + HALF + low).to(tl.float32)[None, :]
            one, two = one * c - two * s, two * c + one * s
        tl.store(out + at, one.to(out.dtype.element_ty), mask=row_mask[:, None])
        tl.store(out + at + HALF, two.to(out.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def heads_backward_kernel(
    y, y_stride, d, d_stride, grad_q, grad_k, grad_v, tiles, table, ranks, adapters, first_module, cos, sin,
    q_norm, k_norm, eps,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, NORM: tl.constexpr,
    R: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Backward of `heads_kernel`: the gradient by the projections takes the place of `y`.

    grad_q `[rows, Q_HEADS, 2 * HALF]`, grad_k and grad_v `[rows, KV_HEADS, 2 * HALF]`, all dense.
    """
    group, tile = tl.program_id(0), tl.program_id(1)
    start, count, adapter = _tile(tiles, tile)
    rows = start.to(tl.int64) + tl.arange(0, ROWS)
    row_mask = tl.arange(0, ROWS) < count
    slot, begin_head = _head_slot(group * STEPS, Q_HEADS, KV_HEADS)
    module = first_module + slot
    width = tl.multiple_of(tl.where(slot == 0, Q_HEADS, KV_HEADS) * 2 * HALF, 16)
    grad, weight = grad_q, q_norm
    if slot == 1:
        grad, weight = grad_k, k_norm
    if slot == 2:
        grad = grad_v
    rank = tl.load(ranks + module * adapters + adapter)
    factor = _factor(table, module, adapter, adapters, B_SIDE, y.dtype.element_ty)
    low = tl.arange(0, HALF)
    turns = slot < 2
    left = _narrow(d, d_stride, rows, row_mask & turns, slot, R)
    c, s = _rotary(cos, sin, rows, row_mask & turns, HALF)
    for step in range(STEPS):
        head = group * STEPS + step
        columns = (head - begin_head) * 2 * HALF + low
        at = rows[:, None] * width + columns[None, :]
        g_one = tl.load(grad + at, mask=row_mask[:, None], other=0.0).to(tl.float32)
        g_two = tl.load(grad + at + HALF, mask=row_mask[:, None], other=0.0).to(tl.float32)
        at = rows[:, None] * y_stride + head * 2 * HALF + low[None, :]
        if turns:
            g_one, g_two = g_one * c + g_two * s, g_two * c - g_one * s
            if NORM:
                one, two = _head_halves(y, at, row_mask, left, factor, rank, columns, width, R, HALF)
                inverse = tl.rsqrt((tl.sum(one * one, 1) + tl.sum(two * two, 1)) / (2 * HALF) + eps)[:, None]
                one, two = one * inverse, two * inverse
                g_one *= tl.load(weight + low).to(tl.float32)[None, :]
                g_two *= tl.load(weight + HALF + low).to(tl.float32)[None, :]
                mean = ((tl.sum(g_one * one, 1) + tl.sum(g_two * two, 1)) / (2 * HALF))[:, None]
                g_one, g_two = inverse * (g_one - one * mean), inverse * (g_two - two * mean)
        tl.store(y + at, g_one.to(y.dtype.element_ty), mask=row_mask[:, None])
        tl.store(y + at + HALF, g_two.to(y.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def swiglu_kernel(
    y, y_stride, d, d_stride, out, tiles, table, ranks, adapters, first_module, size,
    R: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out = silu(gate) * up`, `[rows, size]`, from `y = [gate | up]` plus the adapter's deltas."""
    block, tile = tl.program_id(0), tl.program_id(1)
    start, count, adapter = _tile(tiles, tile)
    rows = start.to(tl.int64) + tl.arange(0, ROWS)
    row_mask = tl.arange(0, ROWS) < count
    gate_rank = tl.load(ranks + first_module * adapters + adapter)
    up_rank = tl.load(ranks + (first_module + 1) * adapters + adapter)
    gate_b = _factor(table, first_module, adapter, adapters, B_SIDE, y.dtype.element_ty)
    up_b = _factor(table, first_module + 1, adapter, adapters, B_SIDE, y.dtype.element_ty)
    gate_d = _narrow(d, d_stride, rows, row_mask, 0, R)
    up_d = _narrow(d, d_stride, rows, row_mask, 1, R)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    at = y + rows[:, None] * y_stride + columns[None, :]
    gate = tl.load(at, mask=row_mask[:, None], other=0.0).to(tl.float32)
    up = tl.load(at + size, mask=row_mask[:, None], other=0.0).to(tl.float32)
    gate += _delta(gate_d, gate_b, gate_rank, columns, size, R)
    up += _delta(up_d, up_b, up_rank, columns, size, R)
    value = gate * tl.sigmoid(gate) * up
    at = out + rows[:, None] * size + columns[None, :]
    tl.store(at, value.to(out.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def swiglu_backward_kernel(
    y, y_stride, d, d_stride, act, gd, gd_stride, tiles, table, ranks, adapters, first_module, size,
    R: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward of `swiglu_kernel`, in place: `y` becomes its gradient, and `act` the forward's output again.

    On entry `act` holds the base part of its own gradient, to which the down projection's `GD @ A` is added.
    """
    block, tile = tl.program_id(0), tl.program_id(1)
    start, count, adapter = _tile(tiles, tile)
    rows = start.to(tl.int64) + tl.arange(0, ROWS)
    row_mask = tl.arange(0, ROWS) < count
    gate_rank = tl.load(ranks + first_module * adapters + adapter)
    up_rank = tl.load(ranks + (first_module + 1) * adapters + adapter)
    down_rank = tl.load(ranks + (first_module + 2) * adapters + adapter)
    gate_b = _factor(table, first_module, adapter, adapters, B_SIDE, y.dtype.element_ty)
    up_b = _factor(table, first_module + 1, adapter, adapters, B_SIDE, y.dtype.element_ty)
    down_a = _factor(table, first_module + 2, adapter, adapters, A_SIDE, y.dtype.element_ty)
    gate_d = _narrow(d, d_stride, rows, row_mask, 0, R)
    up_d = _narrow(d, d_stride, rows, row_mask, 1, R)
    down_gd = _narrow(gd, gd_stride, rows, row_mask, 0, R)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    at = y + rows[:, None] * y_stride + columns[None, :]
    act_at = act + rows[:, None] * size + columns[None, :]
    gate = tl.load(at, mask=row_mask[:, None], other=0.0).to(tl.float32)
    up = tl.load(at + size, mask=row_mask[:, None], other=0.0).to(tl.float32)
    g = tl.load(act_at, mask=row_mask[:, None], other=0.0).to(tl.float32)
    gate += _delta(gate_d, gate_b, gate_rank, columns, size, R)
    up += _delta(up_d, up_b, up_rank, columns, size, R)
    g += _delta(down_gd, down_a, down_rank, columns, size, R)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(act_at, (silu * up).to(act.dtype.element_ty), mask=row_mask[:, None])
    g_gate = g * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(at, g_gate.to(y.dtype.element_ty), mask=row_mask[:, None])
    tl.store(at + size, (g * silu).to(y.dtype.element_ty), mask=row_mask[:, None])


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
