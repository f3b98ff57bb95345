"""BertLayer of a pack as one node of the graph, on a GPU, and when it may be."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from tinyhat.encoder.fused.attention import Pack
from tinyhat.encoder.fused.layer import Facts, Weights, post_norm_layer
from tinyhat.encoder.fused.parts import (
    dropout_rate,
    has,
    is_hooked,
    is_layer,
    is_output,
    is_plain,
    is_proven,
    on_a_gpu,
    products_in,
)
from tinyhat.encoder.interface import NAME, varlen_has


def is_whole(layer: nn.Module) -> bool:
    """Return whether `layer` is BertLayer of a bidirectional encoder: attention, its output part, the feed-forward."""
    attention = getattr(layer, "attention", None)
    own = getattr(attention, "self", None)
    if not (is_layer(layer) and hasattr(own, "attention_head_size") and hasattr(own, "scaling")):
        return False
    packed = getattr(getattr(own, "config", None), "_attn_implementation", None) == NAME
    linear = all(has(own, name, nn.Linear) for name in ("query", "key", "value"))
    outputs = is_output(getattr(attention, "output", None)) and is_output(getattr(layer, "output", None))
    alone = not getattr(layer, "chunk_size_feed_forward", 0) and not getattr(layer, "add_cross_attention", False)
    return packed and linear and outputs and alone


def whole(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """BertLayer's forward: fused where it is given a pack and may be, else stock."""
    fuses = kwargs.get("cu_seqlens") is not None and on_a_gpu(hidden_states) and _fuses(layer, hidden_states)
    return (fused_whole if fuses else type(layer).forward)(layer, hidden_states, *args, **kwargs)


class _Inner(NamedTuple):
    """The modules of a layer."""

    attention: Any
    own: Any
    query: Any
    key: Any
    value: Any
    first: Any
    out: Any
    first_norm: Any
    first_dropout: Any
    up_part: Any
    up: Any
    second: Any
    down: Any
    second_norm: Any
    second_dropout: Any

    @classmethod
    def of(cls, layer: Any) -> _Inner:
        """Return them by their dictionaries: for every layer of every pack, and by attribute it took 18 us, not 2."""
        attention, up, second = (layer._modules[name] for name in ("attention", "intermediate", "output"))
        own, first = (attention._modules[name] for name in ("self", "output"))
        products = (own._modules[name] for name in ("query", "key", "value"))
        one, two = ([x, *(x._modules[name] for name in ("dense", "LayerNorm", "dropout"))] for x in (first, second))
        return cls._make([attention, own, *products, *one, up, up._modules["dense"], *two])


def _fuses(layer: Any, hidden: torch.Tensor) -> bool:
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return False  # its node would keep queries, keys and values
    try:
        inner = _Inner.of(layer)
    except KeyError:  # somebody wrapped a module
        return False
    plain = all(map(is_plain, (inner.query, inner.key, inner.value, inner.out, inner.up, inner.down)))
    norms = type(inner.first_norm) is nn.LayerNorm and type(inner.second_norm) is nn.LayerNorm
    window = getattr(inner.own, "sliding_window", None)  # `local_attention`
    if not plain or not norms or window or any(map(is_hooked, inner)):
        return False
    up, device = inner.up, hidden.device
    dtypes = products_in(hidden, up), up.bias.dtype
    gelu = is_proven("gelu", device, up.out_features, *dtypes)
    return gelu and all(is_proven(kernel, device, up.in_features, *dtypes) for kernel in ("norm", "sums"))


def fused_whole(layer: Any, hidden_states: torch.Tensor, *_: Any, **kwargs: Any) -> torch.Tensor:
    """Return what BertLayer returns for a pack, [1, T, D]."""
    inner = _Inner.of(layer)
    own, first, second = inner.own, inner.first_norm, inner.second_norm
    rates = dropout_rate(inner.first_dropout), dropout_rate(inner.second_dropout)
    low, head = products_in(hidden_states, inner.query), own.attention_head_size
    flash = varlen_has(low, head) and on_a_gpu(hidden_states)
    flash = flash and is_proven("attention", hidden_states.device, head, low, low)
    facts = Facts(head, own.scaling, (first.eps, second.eps), rates, flash)
    products = (inner.query, inner.key, inner.value, inner.out, inner.up, inner.down)
    weight = [x._parameters["weight"] for x in (*products, first, second)]
    bias = [x._parameters["bias"] for x in (*products, first, second)]
    # both in the order query, key, value, out, up, down, first norm, second norm
    weights = Weights._make([*weight[:6], *bias[:4], weight[6], bias[6], bias[4], bias[5], weight[7], bias[7]])
    hidden = hidden_states.flatten(0, 1).to(low)  # a row of it, [0], would be copied into zeros by the backward pass
    return post_norm_layer(hidden, Pack(kwargs["cu_seqlens"], kwargs["max_seqlen"]), facts, weights)[None]


def whole_example(layer: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Return a pack for `layer`, and the keywords that come with it."""
    boundaries = torch.tensor([0, 5, 7], dtype=torch.int32)
    width = layer.attention.self.query.in_features
    return (torch.randn(1, 7, width),), {"cu_seqlens": boundaries, "max_seqlen": 5}
