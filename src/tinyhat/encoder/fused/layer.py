"""A whole post-norm layer of a pack as one node of the graph. T tokens, D width, H heads of width d.

A host launches the kernels of a layer one by one; on an H200's machine it took 3.2 ms for the forward pass of a layer
of RoBERTa-base module by module and op by op (profiled), of which the GPU was busy 1.9. What costs is less what is
launched than what stands around it: modules, views, casts, and a node in the graph for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tinyhat.encoder.fused.attention import Pack, attention_backward, attention_forward
from tinyhat.encoder.fused.launch import (
    Dropout,
    Normed,
    column_sums,
    gelu_backward,
    gelu_forward,
    norm_backward,
    norm_forward,
)
from tinyhat.encoder.fused.ops import requires_gradient


class Weights(NamedTuple):
    """The parameters of a layer, each of its own dtype: products [D, D] ([4 D, D] up, [D, 4 D] down), and vectors."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    query_bias: torch.Tensor
    key_bias: torch.Tensor
    value_bias: torch.Tensor
    out_bias: torch.Tensor
    first_norm: torch.Tensor
    first_norm_bias: torch.Tensor
    up_bias: torch.Tensor
    down_bias: torch.Tensor
    second_norm: torch.Tensor
    second_norm_bias: torch.Tensor


class Facts(NamedTuple):
    """What a layer is besides its weights.

    Attributes:
        head: width of a head.
        scale: factor on scores.
        eps: of both norms.
        rates: of both dropouts.
        flash: whether `attention_forward` may call the flash kernels.
    """

    head: int
    scale: float
    eps: tuple[float, float]
    rates: tuple[float, float]
    flash: bool


def post_norm_layer(hidden: torch.Tensor, pack: Pack, facts: Facts, weights: Weights) -> torch.Tensor:
    """Return the layer's output, [T, D], in the dtype of `hidden`, in which all products are.

    Args:
        hidden: [T, D].
        pack: boundaries of its sequences.
        facts: of the layer.
        weights: of the layer.
    """
    dropouts = Dropout.draw(*facts.rates)
    out = _Layer.apply(hidden, pack, facts, dropouts, requires_gradient(hidden, *weights), *weights)
    assert isinstance(out, torch.Tensor)
    return out


def _cast(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the tensors in `dtype`: where they are not yet, all by one kernel."""
    if all(x.dtype == dtype for x in tensors):
        return list(tensors)
    flat = torch.empty(sum(x.numel() for x in tensors), dtype=dtype, device=tensors[0].device)
    parts = flat.split([x.numel() for x in tensors])
    out = [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(out, list(tensors))
    return out


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Compute `post_norm_layer`; what the backward pass reads is kept as stock layers keep it."""
        hidden, pack, facts, dropouts, keeps, *parameters = inputs
        hidden, w = hidden.contiguous(), Weights(*parameters)
        *products, query_bias, key_bias, value_bias = _cast(w[:9], hidden.dtype)
        query, key, value, out, up, down = products
        pairs = ((query, query_bias), (key, key_bias), (value, value_bias))
        asked = [functional.linear(hidden, *pair).unflatten(-1, (-1, facts.head)) for pair in pairs]
        attended = attention_forward(asked, pack, facts.scale, keeps, facts.flash)
        context = attended.out.flatten(1)
        product = functional.linear(context, out)
        first = norm_forward(
            product, w.out_bias, hidden, w.first_norm, w.first_norm_bias, facts.eps[0], dropouts[0], keeps
        )
        wide = functional.linear(first.out, up)
        active = gelu_forward(wide, w.up_bias)
        product = functional.linear(active, down)
        second = norm_forward(
            product, w.down_bias, first.out, w.second_norm, w.second_norm_bias, facts.eps[1], dropouts[1], keeps
        )
        if keeps:
            vectors = w.first_norm, w.up_bias, w.second_norm
            ctx.save_for_backward(
                hidden, context, *first, wide, active, *second[1:], *products, *vectors, pack.cu_seqlens, *attended.kept
            )
            ctx.graph, ctx.max_seqlen, ctx.facts, ctx.dropouts = attended.graph, pack.max_seqlen, facts, dropouts
            ctx.dtypes = [x.dtype for x in parameters]
        return second.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):  # it would not cast what is added up in place
            return _Layer._gradients(ctx, grads[0].contiguous())

    @staticmethod
    def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, context, *rest = ctx.saved_tensors
        first, (wide, active, kept, stats) = Normed(*rest[:3]), rest[3:7]
        query, key, value, out, up, down, first_norm, up_bias, second_norm, cu_seqlens, *attended = rest[7:]
        d_down, d_first, second_sums = norm_backward(grad, kept, stats, second_norm, ctx.dropouts[1])
        d_wide, d_up_bias = gelu_backward(d_down @ down, wide, up_bias)
        d_first.addmm_(d_wide, up)  # in place: nobody else has seen it
        d_out, d_hidden, first_sums = norm_backward(d_first, first.kept, first.stats, first_norm, ctx.dropouts[0])
        d_attended = (d_out @ out).unflatten(1, (-1, ctx.facts.head))
        pack = Pack(cu_seqlens, ctx.max_seqlen)
        d_asked = attention_backward(d_attended, attended, ctx.graph, pack, ctx.facts.scale)
        d_asked = tuple(d.flatten(1).contiguous() for d in d_asked)  # kernels read rows end to end
        wanted = ctx.needs_input_grad
        if wanted[0]:
            for d, weight in zip(d_asked, (query, key, value), strict=True):
                d_hidden.addmm_(d, weight)
        pairs = [*((d, hidden) for d in d_asked), (d_out, context), (d_wide, first.out), (d_down, active)]
        d_products = [d.t() @ x if wants else None for (d, x), wants in zip(pairs, wanted[5:11], strict=True)]
        vectors = [*(column_sums(*d_asked) if any(wanted[11:14]) else [None] * 3), *first_sums, d_up_bias, *second_sums]
        typed = zip((*d_products, *vectors), ctx.dtypes, strict=True)
        return d_hidden if wanted[0] else None, None, None, None, None, *(d if d is None else d.to(t) for d, t in typed)
