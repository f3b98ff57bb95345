"""Attention within a whole layer, its gradient in hand: torch's flash kernels as they are, or whatever `attend` takes.

`varlen_attn` calls the same kernels through an op written in Python and a graph of its own: on an H200's machine the
host needed .39 ms forward and .40 backward for it, of 1.4 and 2.0 for a whole layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tinyhat.encoder.interface import attend, takes_varlen

Graph = tuple[torch.Tensor, list[torch.Tensor]]  # an output with its graph, and the inputs


class Pack(NamedTuple):
    """Where the sequences of a pack are: int32 [S + 1] boundaries, and the tokens of the longest."""

    cu_seqlens: torch.Tensor
    max_seqlen: int


class Attended(NamedTuple):
    """Attention's output, [T, H, d], and what its backward pass needs: tensors, or a graph with its inputs."""

    out: torch.Tensor
    kept: tuple[torch.Tensor, ...] = ()
    graph: Graph | None = None


def attention_forward(asked: list[torch.Tensor], pack: Pack, scale: float, keeps: bool, direct: bool) -> Attended:
    """Return attention within the sequences of a pack.

    Args:
        asked: queries, keys and values, [T, H, d] each, without a graph.
        pack: boundaries.
        scale: factor on the scores.
        keeps: whether there will be a backward pass.
        direct: whether the flash kernels may be called as they are: proven right there.
    """
    cu, longest = pack
    query, key, value = asked
    if direct and takes_varlen(query, key, cu, longest, longest):
        flash = torch.ops.aten._flash_attention_forward
        out, *rest = flash(query, key, value, cu, cu, longest, longest, 0.0, False, False, scale=scale)
        return Attended(out, (*asked, out, *rest[:3]))
    with torch.set_grad_enabled(keeps):
        query, key, value = asked = [x.detach().requires_grad_(keeps) for x in asked]
        out = attend(query, key, value, cu, cu, longest, longest, scale)
    return Attended(out.detach(), graph=(out, asked))


def attention_backward(
    grad: torch.Tensor, kept: Sequence[torch.Tensor], graph: Graph | None, pack: Pack, scale: float
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of queries, keys and values.

    Args:
        grad: of the output, [T, H, d].
        kept: of `attention_forward`, as are the next three.
        graph: see there.
        pack: see there.
        scale: see there.
    """
    if graph is not None:
        out, asked = graph
        # retained: whether there may be a second backward pass is for the graph around it to say
        return torch.autograd.grad(out, asked, grad, retain_graph=True)
    cu, longest = pack
    query, key, value, out, logsumexp, *random = kept
    flash = torch.ops.aten._flash_attention_backward
    found: Any = flash(
        grad, query, key, value, out, logsumexp, cu, cu, longest, longest, 0.0, False, *random, scale=scale
    )
    return tuple(found)
