"""The parts of LTG-BERT. A saved model carries a copy of this file, so it imports only torch and transformers.

B sequences of T tokens, H width, N heads of d = H / N, P = 2 x buckets - 1 relative positions.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_ltg_bert import LtgBertConfig

BiasTables = tuple[torch.Tensor, torch.Tensor]


def position_buckets(bucket_size: int, max_position: int) -> torch.Tensor:
    """Return the bucket of every distance, int64 [2 M - 1], entry o + M - 1 for the distance o = query - key.

    Distances up to B / 2 have buckets of their own, from there to M - 1 they share them on a logarithmic scale (He et
    al. 2021, DeBERTa, with B - 1 buckets a side). Values lie in [-(B - 1), B - 1].

    Args:
        bucket_size: B.
        max_position: M.
    """
    middle = bucket_size // 2

    def bucket(distance: int) -> int:
        if distance <= middle:
            return distance
        share = math.log(distance / middle) / math.log((max_position - 1) / middle)
        return middle + math.ceil(share * (middle - 1))

    side = [bucket(distance) for distance in range(max_position)]
    return torch.tensor([-b for b in side[:0:-1]] + side)


def distance_index(table: torch.Tensor, length: int) -> torch.Tensor:
    """Return the relative position of every query and key of a sequence, int64 [T, T].

    Args:
        table: int64 [2 M - 1], of `LtgBertEmbedding.table`.
        length: T.
    """
    furthest = (table.shape[0] - 1) // 2
    places = torch.arange(length, device=table.device)
    distances = (places[:, None] - places).clamp(-furthest, furthest)
    return table[distances + furthest]


class LtgBertEmbedding(nn.Module):
    """Words, normed without parameters, and the one table of relative positions all layers share."""

    position_buckets: torch.Tensor

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__()
        self.buckets = config.position_bucket_size
        self.positions = config.max_position_embeddings
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_layer_norm = _plain_norm(config.hidden_size, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relative_embedding = nn.Parameter(torch.empty(2 * self.buckets - 1, config.hidden_size))
        self.relative_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.register_buffer("position_buckets", position_buckets(self.buckets, self.positions), persistent=False)

    def forward(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Return the input of the first layer [B, T, H] for ids [B, T], or for word embeddings [B, T, H]."""
        words = self.word_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        return self.dropout(self.word_layer_norm(words))

    def relative(self) -> torch.Tensor:
        """Return the normed relative positions [P, H]."""
        return self.relative_layer_norm(self.relative_embedding)

    def table(self) -> torch.Tensor:
        """Return int64 [2 M - 1]: which of the P relative positions the distance o = query - key has, at o + M - 1."""
        return self.position_buckets + (self.buckets - 1)


class LtgBertAttention(nn.Module):
    """Disentangled attention: content asks content and position, position asks content, through the same matrix."""

    is_causal = False

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.head_dim = width // self.heads
        self.scaling = 1 / math.sqrt(3 * self.head_dim)
        self.interleaved = config.relative_qk_layout == "interleaved"
        self.dropout_prob = config.attention_probs_dropout_prob
        self.in_proj_qk = nn.Linear(width, 2 * width)
        self.in_proj_v = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.pre_layer_norm = _plain_norm(width, config)
        self.post_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.position_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any,
        relative: torch.Tensor,
        index: torch.Tensor,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what attention adds to `hidden_states` [B, T, H], and the probabilities [B, N, T, T] or None.

        Args:
            hidden_states: [B, T, H].
            attention_mask: as transformers' mask function made it: None, bool, additive, or a BlockMask.
            relative: [P, H], normed relative positions.
            index: int64 [T, T], the relative position of every query and key; with ``cu_seqlens`` among the keywords
                the table of distances [2 M - 1].
            **kwargs: handed to the attention function.
        """
        shape = (*hidden_states.shape[:-1], self.heads, self.head_dim)
        states = self.pre_layer_norm(hidden_states)
        query, key = (x.view(shape).transpose(1, 2) for x in self.in_proj_qk(states).chunk(2, dim=-1))
        value = self.in_proj_v(states).view(shape).transpose(1, 2)
        asked, asking = self.position_heads(relative)
        name = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        kwargs |= {"scaling": self.scaling, "dropout": self.dropout_prob if self.training else 0.0, "is_causal": False}
        visible = None
        if kwargs.get("cu_seqlens") is not None:
            kwargs["relative"] = (asked, asking, index)
        else:
            bias = position_bias(query, key, asked, asking, index, self.scaling)
            if name == "flex_attention":
                kwargs["position_bias"] = bias
            else:
                attention_mask, visible = merge_mask(bias, attention_mask)
        context, probabilities = attend(self, query, key, value, attention_mask, **kwargs)
        if visible is not None:
            context = context * visible
        return self.output(context.flatten(2)), probabilities

    def position_heads(self, relative: torch.Tensor) -> BiasTables:
        """Return keys that content asks, and queries that ask content, [N, P, d] each, from `relative` [P, H]."""
        projected = self.in_proj_qk(self.position_dropout(relative))
        if self.interleaved:
            query, key = projected.unflatten(-1, (self.heads, 2 * self.head_dim)).chunk(2, dim=-1)
        else:
            query, key = (x.unflatten(-1, (self.heads, self.head_dim)) for x in projected.chunk(2, dim=-1))
        return key.transpose(0, 1), query.transpose(0, 1)

    def output(self, context: torch.Tensor) -> torch.Tensor:
        """Return the projected, normed and dropped-out context, [..., H]."""
        return self.dropout(self.post_layer_norm(self.out_proj(context)))


def position_bias(
    query: torch.Tensor,
    key: torch.Tensor,
    asked: torch.Tensor,
    asking: torch.Tensor,
    index: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return the two position terms of the scores, [B, N, T, T]: P products a token, then one pick per key.

    Args:
        query: [B, N, T, d].
        key: [B, N, T, d].
        asked: [N, P, d], position keys.
        asking: [N, P, d], position queries.
        index: int64 [T, T], which of the P positions a query and a key have.
        scaling: factor on the scores.
    """
    picks = index.expand(*query.shape[:2], *index.shape)
    content_to_position = torch.matmul(query, asked.transpose(1, 2) * scaling).gather(3, picks)
    position_to_content = torch.matmul(asking * scaling, key.transpose(2, 3)).gather(2, picks)
    return content_to_position + position_to_content


def merge_mask(bias: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Lay a mask over the bias [B, N, T, T]; return it, and which queries see any key at all, bool [B, T, 1, 1].

    A query that sees nothing (a row of padding) gets a context of zeros from the caller: softmax over equal minima
    would give it the mean of what it must not see.
    """
    if mask is None:
        return bias, None
    lowest = torch.finfo(bias.dtype).min
    allowed = mask if mask.dtype == torch.bool else mask > lowest / 2
    merged = torch.where(mask, bias, lowest) if mask.dtype == torch.bool else (bias + mask).clamp(min=lowest)
    return merged, allowed.any(-1).transpose(1, 2).unsqueeze(-1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that shows its probabilities: context [B, T, N, d] and [B, N, T, T]; bias and mask come as one."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling + attention_mask
    probabilities = functional.dropout(scores.softmax(-1), dropout, module.training)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


class LtgBertMlp(nn.Module):
    """GEGLU (Shazeer 2020) with a norm before and one on the gated product."""

    def __init__(self, config: LtgBertConfig, layer_idx: int) -> None:
        super().__init__()
        self.pre_layer_norm = _plain_norm(config.hidden_size, config)
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.mid_layer_norm = _plain_norm(config.intermediate_size, config)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        for linear in (self.up, self.down):
            # a note for the model's _init_weights, which draws after construction: a factor applied here would be lost
            linear.init_scale = math.sqrt(1 / (2 * (1 + layer_idx)))  # type: ignore[assignment]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the layer adds to `hidden_states` [..., H]."""
        value, gate = self.up(self.pre_layer_norm(hidden_states)).chunk(2, dim=-1)
        gated = value * functional.gelu(gate, approximate="tanh")
        return self.dropout(self.down(self.mid_layer_norm(gated)))


class LtgBertLayer(GradientCheckpointingLayer):
    """Attention and feed-forward on a residual stream that is never normed itself."""

    def __init__(self, config: LtgBertConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = LtgBertAttention(config)
        self.mlp = LtgBertMlp(config, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any,
        relative: torch.Tensor,
        index: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the stream behind this layer, [B, T, H]; arguments as in `LtgBertAttention`."""
        attended, _ = self.attention(hidden_states, attention_mask, relative, index, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(hidden_states)


class LtgBertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LtgBertLayer(config, i) for i in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any,
        relative: torch.Tensor,
        index: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the stream behind the last layer, [B, T, H]; arguments as in `LtgBertAttention`."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, relative, index, **kwargs)
        return hidden_states


class LtgBertHead(nn.Module):
    """The published head: norm, linear, GELU, norm, dropout, linear; predicts words, or classes (``mlp``)."""

    def __init__(self, config: LtgBertConfig, outputs: int, dropout: float) -> None:
        super().__init__()
        self.pre_layer_norm = _plain_norm(config.hidden_size, config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_layer_norm = _plain_norm(config.hidden_size, config)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(config.hidden_size, outputs)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits [..., outputs] of states [..., H]."""
        dense = functional.gelu(self.dense(self.pre_layer_norm(hidden_states)))
        return self.out_proj(self.dropout(self.post_layer_norm(dense)))


def _plain_norm(width: int, config: LtgBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=False)
