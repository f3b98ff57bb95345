"""The last layer of an encoder whose head reads the first token: queries and feed-forward for one row per sequence.

Keys and values are still needed of every token; the other 10 of the layer's 12 D x D products are not. S sequences, T
tokens, H heads, D width.
"""

from __future__ import annotations

from operator import attrgetter
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tinyhat.encoder.interface import attend
from tinyhat.encoder.ltg_bert.packed import attend_disentangled


def install_first_row(model: PreTrainedModel) -> nn.Module | None:
    """Let the last layer compute first rows only, where the keyword `gather` is true.

    Returns:
        The layer, to be handed to `remove_first_row`, or None where its structure is not known: it then stays as it is.
    """
    for name, forward, parts in _KNOWN:
        stack = getattr(model.base_model, name, None)
        layers = getattr(stack, "layer", getattr(stack, "layers", None))
        if isinstance(layers, nn.ModuleList) and all(_has(layers[-1], part) for part in parts):
            # bound to the layer, not closed over it: a deep copy of the model must not compute with the original
            layers[-1].forward = MethodType(forward, layers[-1])
            return layers[-1]
    return None


def remove_first_row(layer: nn.Module) -> None:
    """Give a layer its stock forward back."""
    del layer.__dict__["forward"]


def _bert_forward(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, ERNIE: [1, T, D] to [1, S, D]."""
    if not kwargs.get("gather"):
        return type(layer).forward(layer, hidden_states, *args, **kwargs)
    own = layer.attention.self
    first = hidden_states[:, kwargs["cu_seqlens"][:-1]]
    context = _attention(own, own.query(first), own.key, own.value, hidden_states, kwargs)
    return layer.feed_forward_chunk(layer.attention.output(context, first))


def _distilbert_forward(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """DistilBERT: [1, T, D] to [1, S, D]."""
    if not kwargs.get("gather"):
        return type(layer).forward(layer, hidden_states, *args, **kwargs)
    own = layer.attention
    first = hidden_states[:, kwargs["cu_seqlens"][:-1]]
    context = _attention(own, own.q_lin(first), own.k_lin, own.v_lin, hidden_states, kwargs)
    attended = layer.sa_layer_norm(own.out_lin(context) + first)
    return layer.output_layer_norm(layer.ffn(attended) + attended)


def _ltg_bert_forward(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """LTG-BERT: [1, T, D] to [1, S, D]; behind the states come the mask, the relative positions and their table."""
    if not kwargs.get("gather"):
        return type(layer).forward(layer, hidden_states, *args, **kwargs)
    own, (_, relative, table) = layer.attention, args
    cu_seqlens, max_seqlen = kwargs["cu_seqlens"], kwargs["max_seqlen"]
    first = cu_seqlens[:-1]
    states = own.pre_layer_norm(hidden_states[0])
    query, key = own.in_proj_qk(states).unflatten(-1, (2, own.heads, own.head_dim)).unbind(1)
    value = own.in_proj_v(states).unflatten(-1, (own.heads, own.head_dim))
    tables = (*own.position_heads(relative), table)
    cu_first = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
    context = attend_disentangled(query[first], key, value, tables, cu_first, cu_seqlens, 1, max_seqlen, own.scaling)
    attended = hidden_states[:, first] + own.output(context.flatten(1)[None])
    return attended + layer.mlp(attended)


def _attention(
    module: Any, query: torch.Tensor, key: nn.Module, value: nn.Module, hidden: torch.Tensor, kwargs: dict[str, Any]
) -> torch.Tensor:
    """Attention of first rows' queries [1, S, D] over all tokens [1, T, D]: [1, S, D]."""
    cu_seqlens, max_seqlen = kwargs["cu_seqlens"], kwargs["max_seqlen"]
    q_SHd = query[0].unflatten(-1, (-1, module.attention_head_size))
    cu_first = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
    if hidden.is_cpu and type(key) is nn.Linear and type(value) is nn.Linear:
        return _absorbed(q_SHd, key, value, hidden[0], cu_first, cu_seqlens, max_seqlen, module.scaling)
    k, v = (x[0].unflatten(-1, (-1, module.attention_head_size)) for x in (key(hidden), value(hidden)))
    return attend(q_SHd, k, v, cu_first, cu_seqlens, 1, max_seqlen, module.scaling).flatten(1)[None]


def _absorbed(
    q_SHd: torch.Tensor,
    key: nn.Linear,
    value: nn.Linear,
    hidden_TD: torch.Tensor,
    cu_first: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
) -> torch.Tensor:
    """The same without keys and values: q (W x) = (q W) x, and the mean of W x is W times the mean of x.

    The H rows (q W) of a sequence ask the hidden states themselves, as H queries of one head of width D: H x D products
    a token instead of 2 D x D (DeepSeek-V2 2024, section 2.1.2, absorbs its projections alike).
    """
    heads, width = q_SHd.shape[1], q_SHd.shape[2]
    asking = torch.einsum("shd,hdD->shD", q_SHd, key.weight.unflatten(0, (heads, width)))
    states = hidden_TD.to(asking.dtype)[:, None]
    cu_query = cu_first * heads
    means = attend(asking.flatten(0, 1)[:, None], states, states, cu_query, cu_seqlens, heads, max_seqlen, scale)
    context = torch.einsum("shD,hdD->shd", means.view_as(asking), value.weight.unflatten(0, (heads, width))).flatten(1)
    if value.bias is not None:
        context = context + value.bias.to(context.dtype)
    if key.bias is not None:  # it moves all scores of a row alike; its gradient is 0, and not none, or DDP would wait
        context = context + 0 * key.bias.to(context.dtype)
    return context[None]


_BERT_PARTS = ("attention.self.query", "attention.output.dense", "attention.output.LayerNorm", "feed_forward_chunk")
_DISTILBERT_PARTS = ("attention.q_lin", "attention.out_lin", "sa_layer_norm", "ffn", "output_layer_norm")
_LTG_BERT_PARTS = ("attention.in_proj_qk", "attention.position_heads", "mlp.up")
_KNOWN = (
    ("encoder", _bert_forward, _BERT_PARTS),
    ("transformer", _distilbert_forward, _DISTILBERT_PARTS),
    ("transformer", _ltg_bert_forward, _LTG_BERT_PARTS),
)


def _has(module: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(module)
    except AttributeError:
        return False
    return True
