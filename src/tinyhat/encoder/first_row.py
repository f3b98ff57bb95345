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


def install_first_row(model: PreTrainedModel) -> nn.Module | None:
    """Let the last layer compute first rows only, where the keyword `gather` is true.

    Returns:
        The layer, to be handed to `remove_first_row`, or None where its structure is not known: it then stays as it is.
    """
    for name, forward, parts in _KNOWN:
        layers = getattr(getattr(model.base_model, name, None), "layer", None)
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
    context = _attention(own, own.query(first), own.key(hidden_states), own.value(hidden_states), kwargs)
    return layer.feed_forward_chunk(layer.attention.output(context, first))


def _distilbert_forward(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """DistilBERT: [1, T, D] to [1, S, D]."""
    if not kwargs.get("gather"):
        return type(layer).forward(layer, hidden_states, *args, **kwargs)
    own = layer.attention
    first = hidden_states[:, kwargs["cu_seqlens"][:-1]]
    context = _attention(own, own.q_lin(first), own.k_lin(hidden_states), own.v_lin(hidden_states), kwargs)
    attended = layer.sa_layer_norm(own.out_lin(context) + first)
    return layer.output_layer_norm(layer.ffn(attended) + attended)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kwargs: dict[str, Any]
) -> torch.Tensor:
    """Attention of first rows [1, S, D] over all tokens [1, T, D]: [1, S, D]."""
    cu_seqlens = kwargs["cu_seqlens"]
    q, k, v = (x[0].unflatten(-1, (-1, module.attention_head_size)) for x in (query, key, value))
    cu_first = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
    return attend(q, k, v, cu_first, cu_seqlens, 1, kwargs["max_seqlen"], module.scaling).flatten(1)[None]


_BERT_PARTS = ("attention.self.query", "attention.output.dense", "attention.output.LayerNorm", "feed_forward_chunk")
_DISTILBERT_PARTS = ("attention.q_lin", "attention.out_lin", "sa_layer_norm", "ffn", "output_layer_norm")
_KNOWN = (("encoder", _bert_forward, _BERT_PARTS), ("transformer", _distilbert_forward, _DISTILBERT_PARTS))


def _has(module: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(module)
    except AttributeError:
        return False
    return True
