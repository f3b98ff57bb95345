"""Triton kernels of `launch`: one pass over memory each. Imported on a GPU only. T rows, D columns.

A row is read by one program of one warp, in four parts of D / 4 columns (`PART`, padded to a power of two, `WIDTH`):
one Philox call makes four random words, one for each part. Under torch.compile, which makes one call an element,
dropout took 12 of the 42 ms of a step's compiled kernels (RoBERTa-base, H200). Seven rounds are Crush-resistant (Salmon
et al. 2011).

Sums over rows (gradients of biases and norm weights) are partial sums of programs, each over its own rows in order: the
same bits every time, which atomic additions would not give.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _dropout(x, word, dropped, scale, DROPOUT: tl.constexpr):
    """Return x * scale, or 0 where the 31 upper bits of the word are below `dropped`."""
    if DROPOUT:
        kept = (word.to(tl.uint32, bitcast=True) >> 1).to(tl.int32) >= dropped
        x = tl.where(kept, x * scale, 0.0)
    return x


@triton.jit
def _dropped(h, bias, residual, first, real, columns, word, dropped, scale, DROPOUT: tl.constexpr):
    """Return dropout(h + bias) + residual of one part, fp32."""
    place = first + columns
    x = tl.load(h + place, mask=real, other=0.0).to(tl.float32) + tl.load(bias + columns, mask=real, other=0.0)
    return _dropout(x, word, dropped, scale, DROPOUT) + tl.load(residual + place, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _normed(out, kept, x, centre, rstd, gamma, beta, first, real, columns, KEEP: tl.constexpr):
    if KEEP:
        tl.store(kept + first + columns, x, mask=real)
    g = tl.load(gamma + columns, mask=real, other=0.0).to(tl.float32)
    b = tl.load(beta + columns, mask=real, other=0.0).to(tl.float32)
    tl.store(out + first + columns, (x - centre) * rstd * g + b, mask=real)


@triton.jit(do_not_specialize=["T", "seed", "dropped"])
def norm_forward(
    h, bias, residual, gamma, beta, out, kept, stats, T, seed, dropped, scale, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, DROPOUT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Write norm(dropout(h + bias) + residual) of one row, [D]; keep the sum, and its mean and 1 / deviation."""
    PART: tl.constexpr = D // 4
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    real = column < PART
    first = row.to(tl.int64) * D
    w0, w1, w2, w3 = tl.randint4x(seed, row * WIDTH + column, 7)
    c1, c2, c3 = column + PART, column + 2 * PART, column + 3 * PART
    x0 = _dropped(h, bias, residual, first, real, column, w0, dropped, scale, DROPOUT)
    x1 = _dropped(h, bias, residual, first, real, c1, w1, dropped, scale, DROPOUT)
    x2 = _dropped(h, bias, residual, first, real, c2, w2, dropped, scale, DROPOUT)
    x3 = _dropped(h, bias, residual, first, real, c3, w3, dropped, scale, DROPOUT)
    centre = tl.sum(tl.where(real, x0 + x1 + x2 + x3, 0.0), 0) / D
    d0, d1, d2, d3 = x0 - centre, x1 - centre, x2 - centre, x3 - centre
    squares = tl.where(real, d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / D + eps)
    if KEEP:
        tl.store(stats + row, centre)
        tl.store(stats + T + row, rstd)
    _normed(out, kept, x0, centre, rstd, gamma, beta, first, real, column, KEEP)
    _normed(out, kept, x1, centre, rstd, gamma, beta, first, real, c1, KEEP)
    _normed(out, kept, x2, centre, rstd, gamma, beta, first, real, c2, KEEP)
    _normed(out, kept, x3, centre, rstd, gamma, beta, first, real, c3, KEEP)


@triton.jit
def _read(grad, kept, gamma, centre, rstd, first, real, columns):
    """Return dy, the normed values and dy * gamma of one part, fp32."""
    dy = tl.load(grad + first + columns, mask=real, other=0.0).to(tl.float32)
    x = tl.load(kept + first + columns, mask=real, other=0.0).to(tl.float32)
    normed = tl.where(real, (x - centre) * rstd, 0.0)
    return dy, normed, dy * tl.load(gamma + columns, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _write(d_h, d_residual, g, normed, a, b, rstd, first, real, columns, word, dropped, scale, DROPOUT: tl.constexpr):
    """Write both gradients of one part; return the one of h."""
    ds = tl.where(real, (g - a - normed * b) * rstd, 0.0)
    tl.store(d_residual + first + columns, ds, mask=real)
    ds = _dropout(ds, word, dropped, scale, DROPOUT)
    tl.store(d_h + first + columns, ds, mask=real)
    return ds


@triton.jit
def _store_sums(sums, which, program, d0, d1, d2, d3, PART: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    real = column < PART
    place = sums + (program * 3 + which) * 4 * PART + column
    tl.store(place, d0, mask=real)
    tl.store(place + PART, d1, mask=real)
    tl.store(place + 2 * PART, d2, mask=real)
    tl.store(place + 3 * PART, d3, mask=real)


@triton.jit(do_not_specialize=["T", "seed", "dropped"])
def norm_backward(
    grad, kept, gamma, stats, d_h, d_residual, sums, T, seed, dropped, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Write the gradients of h and residual, [T, D], and this program's sums of d_bias, d_gamma, d_beta, [3, D]."""
    PART: tl.constexpr = D // 4
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    real = column < PART
    c1, c2, c3 = column + PART, column + 2 * PART, column + 3 * PART
    zero = tl.zeros((WIDTH,), tl.float32)
    h0, h1, h2, h3 = zero, zero, zero, zero
    g0, g1, g2, g3 = zero, zero, zero, zero
    b0, b1, b2, b3 = zero, zero, zero, zero
    for row in range(program, T, tl.num_programs(0)):
        first = tl.cast(row, tl.int64) * D
        centre = tl.load(stats + row)
        rstd = tl.load(stats + T + row)
        y0, n0, e0 = _read(grad, kept, gamma, centre, rstd, first, real, column)
        y1, n1, e1 = _read(grad, kept, gamma, centre, rstd, first, real, c1)
        y2, n2, e2 = _read(grad, kept, gamma, centre, rstd, first, real, c2)
        y3, n3, e3 = _read(grad, kept, gamma, centre, rstd, first, real, c3)
        a = tl.sum(e0 + e1 + e2 + e3, 0) / D
        b = tl.sum(e0 * n0 + e1 * n1 + e2 * n2 + e3 * n3, 0) / D
        w0, w1, w2, w3 = tl.randint4x(seed, row * WIDTH + column, 7)
        h0 += _write(d_h, d_residual, e0, n0, a, b, rstd, first, real, column, w0, dropped, scale, DROPOUT)
        h1 += _write(d_h, d_residual, e1, n1, a, b, rstd, first, real, c1, w1, dropped, scale, DROPOUT)
        h2 += _write(d_h, d_residual, e2, n2, a, b, rstd, first, real, c2, w2, dropped, scale, DROPOUT)
        h3 += _write(d_h, d_residual, e3, n3, a, b, rstd, first, real, c3, w3, dropped, scale, DROPOUT)
        g0 += y0 * n0
        g1 += y1 * n1
        g2 += y2 * n2
        g3 += y3 * n3
        b0 += y0
        b1 += y1
        b2 += y2
        b3 += y3
    _store_sums(sums, 0, program, h0, h1, h2, h3, PART, WIDTH)
    _store_sums(sums, 1, program, g0, g1, g2, g3, PART, WIDTH)
    _store_sums(sums, 2, program, b0, b1, b2, b3, PART, WIDTH)


@triton.jit
def _normal(x):
    """Return the normal distribution function at x and exp(-x^2 / 2), which both need one exponential.

    Abramowitz & Stegun 7.1.26, off by at most 1.5e-7 in erf. On an H200 a GELU with the library's erf moves
    2.8 TB/s and so is bound by arithmetic; this one moves 3.7, as the norm does.
    """
    falls = tl.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + 0.2316418882663604 * tl.abs(x))
    beyond = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    beyond *= falls
    return tl.where(x < 0, beyond, 1.0 - beyond), falls


@triton.jit(do_not_specialize=["T"])
def gelu_forward(h, bias, out, T, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Write gelu(h + bias), [T, D]: x times the normal distribution function (Hendrycks & Gimpel 2016)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    real = (row < T) & (column < D)
    place = row.to(tl.int64) * D + column
    x = tl.load(h + place, mask=real, other=0.0).to(tl.float32)
    x += tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)
    share, _ = _normal(x)
    tl.store(out + place, x * share, mask=real)


@triton.jit(do_not_specialize=["T"])
def gelu_backward(grad, h, bias, d_h, sums, T, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Write the gradient of h, [T, D], and this program's sums of it over its rows, [D]."""
    program = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    shift = tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(program * ROWS, T, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        real = (row < T) & (column < D)
        place = row.to(tl.int64) * D + column
        x = tl.load(h + place, mask=real, other=0.0).to(tl.float32) + shift
        dy = tl.load(grad + place, mask=real, other=0.0).to(tl.float32)
        share, falls = _normal(x)
        dx = dy * (share + x * 0.3989422804014327 * falls)
        tl.store(d_h + place, dx, mask=real)
        total += tl.where(real, dx, 0.0)
    edge = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    tl.store(sums + program * D + edge, tl.sum(total, 0), mask=edge < D)


@triton.jit(do_not_specialize=["T"])
def column_sums(x0, x1, x2, sums, T, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Write this program's sums over its rows of one of three tensors, [T, D]."""
    program = tl.program_id(0)
    which = tl.program_id(2)
    x = x0
    if which == 1:
        x = x1
    if which == 2:
        x = x2
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(program * ROWS, T, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        total += tl.load(x + row.to(tl.int64) * D + column, mask=(row < T) & (column < D), other=0.0).to(tl.float32)
    edge = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    tl.store(sums + (program * 3 + which) * D + edge, tl.sum(total, 0), mask=edge < D)
