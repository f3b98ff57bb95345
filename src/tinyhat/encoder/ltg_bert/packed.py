"""LTG-BERT's attention within the sequences of a pack, with its own backward pass: one op for CPU and CUDA.

The position terms are two thin products a token (P buckets wide) and one pick per query and key, by the distance within
a sequence; nothing is ever as large as the pack squared. S sequences, T tokens, Q queries (T, or S where only first
rows ask), H heads, D width of a head, P relative positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from tinyhat.encoder.attention import KEEP_BYTES, Group, attention_bytes, blocks, groups
from tinyhat.encoder.ltg_bert.batches import Inputs, PaddedBatch
from tinyhat.encoder.ltg_bert.flex import attend_flex

P = ParamSpec("P")
R = TypeVar("R")
Relative = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # asked [H, P, D], asking [H, P, D], table [2 M - 1]
CUDA_WAY = "blocks"  # or "flex", which writes no scores to memory but adds gradients of positions one by one
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op("tinyhat::disentangled_attention", mutates_args=())
def disentangled_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    asked: torch.Tensor,
    asking: torch.Tensor,
    table: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    max_query: int,
    max_key: int,
    scale: float,
) -> torch.Tensor:
    """Return softmax(scale x (Q K^T + position terms)) V within every sequence of a pack, [Q, H, D].

    The score of query i and key j gains scale x (Q_i . asked_b + asking_b . K_j), b the bucket of i - j (Samuel et al.
    2023, section 3; He et al. 2021). The arguments are the fields of `Inputs`.
    """
    return _forward(Inputs(query, key, value, asked, asking, table, cu_query, cu_key, max_query, max_key, scale), None)


@torch.library.custom_op("tinyhat::disentangled_attention_backward", mutates_args=())
def disentangled_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    asked: torch.Tensor,
    asking: torch.Tensor,
    table: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    max_query: int,
    max_key: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key, value, `asked` and `asking` for `grad` [Q, H, D], that of the output."""
    inputs = Inputs(query, key, value, asked, asking, table, cu_query, cu_key, max_query, max_key, scale)
    return _backward(grad, inputs, None)


class KeptDisentangled(torch.autograd.Function):
    """`disentangled_attention` whose backward pass finds the probabilities of the forward pass; eager only."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Take the fields of `Inputs`."""
        kept: list[torch.Tensor] = []
        out = _forward(Inputs(*inputs), kept)
        ctx.numbers = inputs[8:]
        ctx.save_for_backward(*inputs[:8], *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        """Return the gradients of query, key, value and both position tables."""
        saved = ctx.saved_tensors  # once: under checkpointing they are computed when asked for
        found = _backward(gradients[0].contiguous(), Inputs(*saved[:8], *ctx.numbers), list(saved[8:]))
        return *found, *[None] * 6


def attend_disentangled(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative: Relative,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    max_query: int,
    max_key: int,
    scale: float,
) -> torch.Tensor:
    """Return LTG-BERT's attention [Q, H, D] within sequences; probabilities are kept for backward while they are few.

    Args:
        query: [Q, H, D].
        key: [T, H, D].
        value: [T, H, D].
        relative: position keys and queries [H, P, D] and the table of distances int64 [2 M - 1].
        cu_query: int32 [S + 1].
        cu_key: int32 [S + 1].
        max_query: most queries of a sequence.
        max_key: most keys of a sequence.
        scale: factor on the scores.
    """
    asked, asking = (x.to(query.dtype) for x in relative[:2])
    inputs = Inputs(query, key, value, asked, asking, relative[2], cu_query, cu_key, max_query, max_key, scale)
    if _on_gpu(query) and CUDA_WAY == "flex" and max_query > 1 and not torch.compiler.is_compiling():
        return attend_flex(inputs)
    keeps = query.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if keeps and not _on_gpu(query) and attention_bytes(query, cu_query, cu_key) <= KEEP_BYTES:
        out = KeptDisentangled.apply(*inputs)
        assert isinstance(out, torch.Tensor)
        return out
    return disentangled_attention(*inputs)


def _on_gpu(x: torch.Tensor) -> bool:
    """Whether large batches and matrix products are the fast way, rather than small blocks and sums in place."""
    return x.is_cuda


class _Positions:
    """The position terms of one batch of sequences, block by block.

    Args:
        q: [G, n, D], scaled queries.
        k: [G, m, D].
        x: `asked`, `asking` and `table` count here; a batch row belongs to head ``row % H``.
    """

    def __init__(self, q: torch.Tensor, k: torch.Tensor, x: Inputs) -> None:
        copies = q.shape[0] // x.asked.shape[0]
        self.asked, self.asking = x.asked.repeat(copies, 1, 1), (x.asking * x.scale).repeat(copies, 1, 1)
        furthest = (x.table.shape[0] - 1) // 2
        rows, columns = torch.arange(q.shape[1], device=q.device), torch.arange(k.shape[1], device=q.device)
        self.index = x.table[(rows[:, None] - columns).clamp_(-furthest, furthest).add_(furthest)]
        # picking from [m x P] laid flat reads along memory: three times as fast on CPU as picking by row
        self.flat = self.index + columns * x.asked.shape[1]
        self.by_content = torch.bmm(q, self.asked.transpose(1, 2))
        self.of_content = torch.bmm(k, self.asking.transpose(1, 2)).flatten(1)

    def add_to(self, scores: torch.Tensor, b: slice, r: slice) -> None:
        """Add both terms to the scores [g, r, m] of a block."""
        index, flat = self.index[r], self.flat[r].reshape(-1)
        count = scores.shape[0]
        scores += self.by_content[b, r].gather(2, index.expand(count, *index.shape))
        scores += self.of_content[b].gather(1, flat.expand(count, -1)).view_as(scores)

    def begin_gradients(self) -> None:
        """Set the sums of gradients by position to zero."""
        exact = torch.promote_types(self.by_content.dtype, torch.float32)
        self.d_by_content = torch.zeros_like(self.by_content, dtype=exact)
        self.d_of_content = torch.zeros_like(self.of_content, dtype=exact)

    def add_gradients(self, ds: torch.Tensor, b: slice, r: slice) -> None:
        """Sum the gradients of a block's scores [g, r, m] by position, for queries and for keys, in fp32.

        Hundreds of keys share the furthest buckets: bf16 sums would lose them, and on a GPU they would wait for each
        other. There a product with ones where query and key have a position sums them, in fp32 inside.
        """
        index, flat = self.index[r], self.flat[r].reshape(-1)
        if _on_gpu(ds):
            ones = ds.new_zeros(*index.shape, self.asked.shape[1]).scatter_(2, index[:, :, None], 1)
            self.d_by_content[b, r] += torch.bmm(ds.transpose(0, 1), ones).transpose(0, 1)
            by_key = torch.bmm(ds.permute(2, 0, 1), ones.transpose(0, 1)).transpose(0, 1)
            self.d_of_content[b] += by_key.flatten(1)
            return
        ds = ds.to(self.d_by_content.dtype)
        count = ds.shape[0]
        self.d_by_content[b, r].scatter_add_(2, index.expand(count, *index.shape), ds)
        self.d_of_content[b].scatter_add_(1, flat.expand(count, -1), ds.flatten(1))

    def finish(
        self, q: torch.Tensor, k: torch.Tensor, dq: torch.Tensor, dk: torch.Tensor, tables: list[torch.Tensor]
    ) -> None:
        """Add the position terms' share to the gradients of queries, keys and `tables` (asked, asking), in place."""
        by_content = self.d_by_content.to(q.dtype)
        of_content = self.d_of_content.view(*k.shape[:2], -1).to(k.dtype)
        dq += torch.bmm(by_content, self.asked)
        dk += torch.bmm(of_content, self.asking)
        for table, weights, content in zip(tables, (by_content, of_content), (q, k), strict=True):
            shares = torch.bmm(weights.transpose(1, 2), content)
            table += shares.view(-1, *table.shape).sum(0, dtype=table.dtype)


def _batches(x: Inputs) -> Iterator[tuple[Group | PaddedBatch, torch.Tensor | None]]:
    """Yield batches and which of their keys [G, 1, m] are padding: runs of equal length on CPU, all at once on CUDA."""
    if _on_gpu(x.query):
        batch = PaddedBatch(x.cu_query, x.cu_key, x.query, x.key, x.max_query, x.max_key)
        yield batch, batch.hidden
    else:
        yield from ((group, None) for group in groups(x.cu_query, x.cu_key))


def _as_given(function: Callable[P, R]) -> Callable[P, R]:
    """Compute in the dtypes of the inputs: on CUDA autocast makes a softmax fp32, and its product with bf16 fails."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return inside


@_as_given
def _forward(x: Inputs, kept: list[torch.Tensor] | None) -> torch.Tensor:
    """Return the output; the probabilities of every block are appended to `kept`."""
    out = torch.empty_like(x.query, memory_format=torch.contiguous_format)
    for batch, hidden in _batches(x):
        q, k, v = batch.queries(x.query) * x.scale, batch.keys(x.key), batch.keys(x.value)
        positions = _Positions(q, k, x)
        result = torch.empty_like(q)
        for b, r, _ in blocks(q, k, 0):
            p = _probabilities(q, k, positions, hidden, b, r)
            torch.bmm(p, v[b], out=result[b, r])
            if kept is not None:
                kept.append(p)
        batch.store_queries(out, result)
    return out


@_as_given
def _backward(grad: torch.Tensor, x: Inputs, kept: list[torch.Tensor] | None) -> Gradients:
    """Return the five gradients; probabilities come from `kept`, in the order of the forward pass, or are computed."""
    probabilities = iter(kept or ())
    exact = torch.promote_types(x.query.dtype, torch.float32)
    d_query, d_key, d_value = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in x[:3])
    tables = [torch.zeros_like(t, dtype=exact) for t in (x.asked, x.asking)]
    for batch, hidden in _batches(x):
        q, k, v, g = batch.queries(x.query) * x.scale, batch.keys(x.key), batch.keys(x.value), batch.queries(grad)
        positions = _Positions(q, k, x)
        positions.begin_gradients()
        cuts = list(blocks(q, k, 0))
        whole = cuts[0][1].stop >= q.shape[1]  # no key gets a share from more than one block
        dq = torch.empty_like(q)
        dk, dv = (torch.empty_like(t) if whole else torch.zeros_like(t, dtype=exact) for t in (k, v))
        for b, r, _ in cuts:
            p = _probabilities(q, k, positions, hidden, b, r) if kept is None else next(probabilities)
            ds = torch.bmm(g[b, r], v[b].transpose(1, 2))
            ds = _softmax_backward(ds, p)
            torch.bmm(ds, k[b], out=dq[b, r])
            if whole:
                torch.bmm(ds.transpose(1, 2), q[b], out=dk[b])
                torch.bmm(p.transpose(1, 2), g[b], out=dv[b])
            else:
                dk[b] += torch.bmm(ds.transpose(1, 2), q[b, r])
                dv[b] += torch.bmm(p.transpose(1, 2), g[b, r])
            positions.add_gradients(ds, b, r)
        positions.finish(q, k, dq, dk, tables)
        batch.store_queries(d_query, dq.mul_(x.scale))
        batch.store_keys(d_key, dk)
        batch.store_keys(d_value, dv)
    d_asked, d_asking = tables[0].to(x.asked.dtype), tables[1].mul_(x.scale).to(x.asking.dtype)
    return d_query, d_key, d_value, d_asked, d_asking


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, positions: _Positions, hidden: torch.Tensor | None, b: slice, r: slice
) -> torch.Tensor:
    """Return the probabilities [g, r, m] of one block."""
    scores = torch.bmm(q[b, r], k[b].transpose(1, 2))
    positions.add_to(scores, b, r)
    if hidden is not None:
        scores.masked_fill_(hidden[b], float("-inf"))
    return scores.softmax(-1) if _on_gpu(scores) else torch.ops.aten._softmax.out(scores, -1, False, out=scores)


def _softmax_backward(grad: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the gradient of scores for that of their probabilities; on CPU in its place, which saves fresh pages."""
    if _on_gpu(grad):
        return torch.ops.aten._softmax_backward_data(grad, p, -1, p.dtype)
    return torch.ops.aten._softmax_backward_data.out(grad, p, -1, p.dtype, grad_input=grad)


@disentangled_attention.register_fake
def _(query: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@disentangled_attention_backward.register_fake
def _(grad: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:5])


def _setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.numbers = inputs[8:]
    ctx.save_for_backward(*inputs[:8])


def _op_backward(ctx: Any, grad: torch.Tensor) -> tuple:
    found = disentangled_attention_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.numbers)
    return *found, *[None] * 6


disentangled_attention.register_autograd(_op_backward, setup_context=_setup)
