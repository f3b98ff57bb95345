"""Attention within the sequences of a pack: one torch op with its own backward, and its eager twin that keeps scores.

S sequences, T tokens, Q queries (T, or S where only first rows ask), H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

BLOCK_BYTES = 8 << 20  # scores held at once; 3 to 12 MiB are as fast, fewer blocks wait less on a busy machine
BLOCK_BYTES_CUDA = 1 << 26
MIN_ROWS = 64  # fewer query rows make poor matrix products
KEEP_BYTES = 1 << 27  # probabilities kept for the backward pass by one call: 16 sequences of 512 tokens, 12 heads, bf16


@torch.library.custom_op("tinyhat::packed_attention", mutates_args=())
def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Return softmax(scale x Q K^T) V within every sequence of a pack (Vaswani et al. 2017, equation 1).

    The scores of one block are materialised by plain ``bmm``, used and forgotten; the backward pass computes them
    again.

    Args:
        query: [Q, H, D], the rows that ask, by sequence.
        key: [T, H, D], of the dtype of `query`.
        value: [T, H, D].
        cu_query: int32 [S + 1], where each sequence's queries begin.
        cu_key: int32 [S + 1], where each sequence's keys begin.
        scale: factor on the scores.
        window: a query sees the keys at a distance below `window` (as many queries as keys); 0: all keys.

    Returns:
        [Q, H, D].
    """
    return _forward(query, key, value, cu_query, cu_key, scale, window, None)


@torch.library.custom_op("tinyhat::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `query`, `key` and `value` for `grad` [Q, H, D], the gradient of the output."""
    return _backward(grad, query, key, value, cu_query, cu_key, scale, window, None)


class KeptAttention(torch.autograd.Function):
    """`packed_attention` whose backward pass finds the probabilities of the forward pass instead of computing them.

    Attention in a training step of MiniLM at EURLEX lengths takes an eighth less time, and a layer holds
    `attention_bytes` more. Eager only: how much is kept depends on the boundaries, unknown to a compiled graph.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Take the arguments of `packed_attention`."""
        kept: list[torch.Tensor] = []
        query, key, value, cu_query, cu_key, ctx.scale, ctx.window = inputs
        out = _forward(query, key, value, cu_query, cu_key, ctx.scale, ctx.window, kept)
        ctx.save_for_backward(query, key, value, cu_query, cu_key, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        """Return the gradients of query, key and value."""
        query, key, value, cu_query, cu_key, *kept = ctx.saved_tensors
        grad = gradients[0].contiguous()
        found = _backward(grad, query, key, value, cu_query, cu_key, ctx.scale, ctx.window, kept)
        return *found, None, None, None, None


def attention_bytes(query: torch.Tensor, cu_query: torch.Tensor, cu_key: torch.Tensor) -> int:
    """Return the bytes of all probabilities of a pack, without a window."""
    cells = int((cu_query.diff().long() * cu_key.diff().long()).sum())
    return cells * query.shape[1] * query.element_size()


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    scale: float,
    window: int,
    kept: list[torch.Tensor] | None,
) -> torch.Tensor:
    """Return the output; the probabilities of every block are appended to `kept`."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in groups(cu_query, cu_key):
        q, k, v = group.queries(query) * scale, group.keys(key), group.keys(value)
        result = torch.empty_like(q)
        for b, r, c in blocks(q, k, window):
            p = _probabilities(q, k, b, r, c, window)
            torch.bmm(p, v[b, c], out=result[b, r])
            if kept is not None:
                kept.append(p)
        group.store_queries(out, result)
    return out


def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    scale: float,
    window: int,
    kept: list[torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the three gradients; probabilities come from `kept`, in the order of the forward pass, or are computed."""
    probabilities = iter(kept or ())
    d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    d_key = torch.empty_like(key, memory_format=torch.contiguous_format)
    d_value = torch.empty_like(value, memory_format=torch.contiguous_format)
    exact = torch.promote_types(query.dtype, torch.float32)  # bf16 sums over many blocks would lose small terms
    for group in groups(cu_query, cu_key):
        q, k, v, g = group.queries(query) * scale, group.keys(key), group.keys(value), group.queries(grad)
        cuts = list(blocks(q, k, window))
        whole = cuts[0][1].stop >= q.shape[1]  # no key gets a share from more than one block
        dq = torch.empty_like(q)
        dk, dv = (torch.empty_like(x) if whole else torch.zeros_like(x, dtype=exact) for x in (k, v))
        for b, r, c in cuts:
            p = _probabilities(q, k, b, r, c, window) if kept is None else next(probabilities)
            dp = torch.bmm(g[b, r], v[b, c].transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data.out(dp, p, -1, p.dtype, grad_input=dp)
            torch.bmm(ds, k[b, c], out=dq[b, r])
            if whole:
                torch.bmm(ds.transpose(1, 2), q[b], out=dk[b])
                torch.bmm(p.transpose(1, 2), g[b], out=dv[b])
            else:
                dk[b, c] += torch.bmm(ds.transpose(1, 2), q[b, r])
                dv[b, c] += torch.bmm(p.transpose(1, 2), g[b, r])
        group.store_queries(d_query, dq.mul_(scale))
        group.store_keys(d_key, dk)
        group.store_keys(d_value, dv)
    return d_query, d_key, d_value


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of equal length: one batch of matrix products [count x H, length, D]."""

    query_begin: int
    key_begin: int
    count: int
    query_length: int
    key_length: int

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """Return this group's rows of `x` [Q, H, D] as [count x H, length, D], contiguous."""
        return self._heads_first(x, self.query_begin, self.query_length)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """Return this group's rows of `x` [T, H, D] as [count x H, length, D], contiguous."""
        return self._heads_first(x, self.key_begin, self.key_length)

    def _heads_first(self, x: torch.Tensor, begin: int, length: int) -> torch.Tensor:
        part = x[begin : begin + self.count * length].view(self.count, length, *x.shape[1:])
        return part.transpose(1, 2).contiguous().view(-1, length, x.shape[2])

    def store_queries(self, x: torch.Tensor, result: torch.Tensor) -> None:
        """Write [count x H, length, D] back into this group's rows of `x` [Q, H, D]."""
        self._store(x, result, self.query_begin)

    def store_keys(self, x: torch.Tensor, result: torch.Tensor) -> None:
        """Write [count x H, length, D] back into this group's rows of `x` [T, H, D]."""
        self._store(x, result, self.key_begin)

    def _store(self, x: torch.Tensor, result: torch.Tensor, begin: int) -> None:
        length = result.shape[1]
        part = x[begin : begin + self.count * length].view(self.count, length, *x.shape[1:])
        part.copy_(result.view(self.count, -1, length, x.shape[2]).transpose(1, 2))


def groups(cu_query: torch.Tensor, cu_key: torch.Tensor) -> Iterator[Group]:
    """Yield the runs of neighbouring sequences with equal lengths, from int32 [S + 1] boundaries."""
    starts_q, starts_k = cu_query.tolist(), cu_key.tolist()
    count = len(starts_k) - 1
    first = 0
    while first < count:
        lengths = (starts_q[first + 1] - starts_q[first], starts_k[first + 1] - starts_k[first])
        last = first + 1
        while last < count and (starts_q[last + 1] - starts_q[last], starts_k[last + 1] - starts_k[last]) == lengths:
            last += 1
        yield Group(starts_q[first], starts_k[first], last - first, *lengths)
        first = last


def blocks(q: torch.Tensor, k: torch.Tensor, window: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a batch of score matrices into (batch, rows, columns) that are small enough; with a window, skip the rest."""
    rows, columns, size = q.shape[1], k.shape[1], q.element_size()
    budget = BLOCK_BYTES_CUDA if q.is_cuda else BLOCK_BYTES
    workers = torch.get_num_threads()
    wanted = window or budget // (workers * columns * size)
    step = min(rows, max(MIN_ROWS, wanted))
    width = min(columns, step + 2 * window) if window else columns
    batch = max(workers, budget // (step * width * size))
    for b in range(0, q.shape[0], batch):
        for r in range(0, rows, step):
            seen = slice(max(0, r - window + 1), min(columns, r + step + window - 1)) if window else slice(0, columns)
            yield slice(b, b + batch), slice(r, r + step), seen


def _probabilities(q: torch.Tensor, k: torch.Tensor, b: slice, r: slice, c: slice, window: int) -> torch.Tensor:
    scores = torch.bmm(q[b, r], k[b, c].transpose(1, 2))
    if window:
        row = torch.arange(r.start, r.start + scores.shape[1], device=q.device)
        column = torch.arange(c.start, c.stop, device=q.device)
        scores.masked_fill_((row[:, None] - column).abs() >= window, float("-inf"))
    return torch.ops.aten._softmax.out(scores, -1, False, out=scores)


@packed_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@packed_attention_backward.register_fake
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(query, memory_format=contiguous),
        torch.empty_like(key, memory_format=contiguous),
        torch.empty_like(value, memory_format=contiguous),
    )


def _setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _op_backward(ctx: Any, grad: torch.Tensor) -> tuple:
    gradients = packed_attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale, ctx.window)
    return *gradients, None, None, None, None


packed_attention.register_autograd(_op_backward, setup_context=_setup)
