"""BERT's layers in bf16 on CPU without what a forward pass for vectors alone does not need. T tokens, D width, H heads.

Weights are cast and laid out for oneDNN once, queries, keys and values come from one matrix product, GELU and residual
are added inside the product, and attention leaves out the pass that subtracts the largest score of every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tinyhat.embed.states import layer_states
from tinyhat.encoder.attention import groups
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.precision import Plan
from tinyhat.types import Pack

LOW = torch.bfloat16
LOG2_E = 1.4426950408889634
BLOCK_BYTES = 1 << 23  # scores at once
REACH = 100.0  # powers of two that neither overflow nor vanish when hundreds of them are added
_LINEAR = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


class _Linear:
    """A linear layer whose bf16 weight has oneDNN's layout."""

    def __init__(self, *layers: nn.Linear) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers]).to(LOW)
        self.bias = torch.cat([layer.bias.detach() for layer in layers]).to(LOW)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    def __call__(self, x_TD: torch.Tensor, then: str = "none") -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, self.weight, self.bias, then, [], "none")
        return out

    def add(self, x_TD: torch.Tensor, residual_TD: torch.Tensor) -> torch.Tensor:
        """Return the layer of `x_TD` plus `residual_TD`, rounded once."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_TD, residual_TD, self.weight, self.bias, "add")
        return out


@dataclass(frozen=True)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> _Norm:
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps)  # fp32: rounded, they double the error

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)


class _Layer:
    def __init__(self, layer: nn.Module) -> None:
        query, key, value, mixed, inner, outer = (attrgetter(name)(layer) for name in _LINEAR)
        self.qkv, self.mixed = _Linear(query, key, value), _Linear(mixed)
        self.inner, self.outer = _Linear(inner), _Linear(outer)
        self.first, self.second = (_Norm.of(attrgetter(name)(layer)) for name in _NORMS)
        own = attrgetter("attention.self")(layer)
        self.heads, self.scale = int(own.num_attention_heads), float(own.scaling)

    def __call__(self, x_TD: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x_TD).unflatten(-1, (3, self.heads, -1)).unbind(1)
        x_TD = self.first(self.mixed.add(attend_unshifted(q, k, v, cu_seqlens, self.scale).flatten(1), x_TD))
        return self.second(self.outer.add(self.inner(x_TD, "gelu"), x_TD))


class FastLayers:
    """An encoder of BERT's build as a chain of few large operations; `fast_layers` says whether there is one."""

    def __init__(self, encoder: Encoder) -> None:
        self.body: Any = encoder.model.base_model
        self.layers = [_Layer(layer) for layer in self.body.encoder.layer]

    def __call__(self, pack: Pack, every: bool) -> list[torch.Tensor]:
        """Return hidden states as `layer_states` does, each bf16 [T, D]."""
        ids, positions = (torch.from_numpy(x)[None] for x in (pack.input_ids, pack.position_ids))
        hidden = self.body.embeddings(input_ids=ids, position_ids=positions)
        if hasattr(self.body, "embeddings_project"):
            hidden = self.body.embeddings_project(hidden)
        tokens = hidden.shape[1]
        states = [F.pad(hidden[0].to(LOW), (0, 0, 0, _more_rows(tokens)))]
        cu_seqlens = torch.from_numpy(pack.cu_seqlens)
        for layer in self.layers:
            states = [*(states if every else ()), layer(states[-1], cu_seqlens)]
        return [state[:tokens] for state in states]


def fast_layers(encoder: Encoder, plan: Plan, device: torch.device) -> FastLayers | None:
    """Return the fast form of an encoder, or None where it has none or does not prove as good.

    Its error to fp32 must be at most 1.5 times that of the stock layers in bf16, on random tokens.

    Args:
        encoder: packed, on `device`, in evaluation mode.
        plan: the numeric plan.
        device: where to compute.
    """
    if device.type != "cpu" or plan.compute != LOW or not plan.autocast or not encoder.packed or not _is_known(encoder):
        return None
    pack = _random_pack(encoder)
    try:
        with torch.inference_mode():
            fast = FastLayers(encoder)
            low = fast(pack, every=False)[0].float()
            exact = layer_states(encoder, pack, device, every=False)[0]
            with plan.context(device):
                stock = layer_states(encoder, pack, device, every=False)[0].float()
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return None  # oneDNN is missing, or its operations are called otherwise in this torch
    good = (low - exact).norm() <= 1.5 * (stock - exact).norm()
    return fast if bool(good) else None


def attend_unshifted(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return attention within sequences, [T, H, d], as `tinyhat::packed_attention` does, in two thirds of its time.

    softmax(s) is the same for scores less any constant, so where no power overflows or vanishes none is subtracted, and
    the sum divides the output instead of the probabilities; 440 tokens in bf16, one core: 3.1 ms for 24 heads, not 4.8.

    Args:
        query: [T, H, d]; key and value alike.
        key: see `query`.
        value: see `query`.
        cu_seqlens: int32 [S + 1].
        scale: factor on the scores.
    """
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)  # rows behind the last sequence stay 0
    for group in groups(cu_seqlens, cu_seqlens):
        q, k, v = group.queries(query) * (scale * LOG2_E), group.keys(key), group.keys(value)
        result = torch.empty_like(q)
        for b, r in _blocks(q.shape[0], q.shape[1]):
            scores = torch.bmm(q[b, r], k[b].transpose(1, 2))
            least, most = torch.aminmax(scores)
            if float(least) > -REACH and float(most) < REACH:
                powers = scores.exp2_()
            else:
                powers = (scores - scores.amax(-1, keepdim=True)).exp2_()
            torch.bmm(powers, v[b], out=result[b, r])
            result[b, r] /= powers.sum(-1, keepdim=True)
        group.store_queries(out, result)
    return out


def _blocks(batch: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Cut [batch, length, length] scores into pieces of at most BLOCK_BYTES, or a row."""
    rows = max(1, min(length, BLOCK_BYTES // (2 * length)))
    together = max(1, BLOCK_BYTES // (2 * rows * length))
    for b in range(0, batch, together):
        for r in range(0, length, rows):
            yield slice(b, b + together), slice(r, r + rows)


def _more_rows(tokens: int) -> int:
    """Return how many rows to add, so that linear layers meet few sizes: oneDNN keeps a kernel for each."""
    return -tokens % (16 if tokens <= 512 else 128)


def _is_known(encoder: Encoder) -> bool:
    config: Any = encoder.model.config
    stack = getattr(getattr(encoder.model.base_model, "encoder", None), "layer", None)
    if not isinstance(stack, nn.ModuleList) or config.hidden_act != "gelu" or getattr(config, "is_decoder", False):
        return False
    if any(getattr(module, "sliding_window", None) is not None for module in stack.modules()):
        return False  # `encoder.local_attention`: these layers would let every token see all
    try:
        parts = [(layer, attrgetter(name)(layer)) for layer in stack for name in (*_LINEAR, *_NORMS)]
    except AttributeError:
        return False
    return all(type(part) in (nn.Linear, nn.LayerNorm) and part.bias is not None for _, part in parts)


def _random_pack(encoder: Encoder) -> Pack:
    random = np.random.default_rng(0)
    lengths = [min(n, encoder.max_positions or n) for n in (48, 17, 17, 3)]
    tokens = sum(lengths)
    return Pack(
        input_ids=random.integers(0, encoder.model.config.vocab_size, tokens),
        position_ids=np.concatenate([np.arange(n) for n in lengths]) + encoder.first_position,
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        max_seqlen=max(lengths),
        sequence_doc=np.arange(len(lengths)),
        rows=np.arange(len(lengths)),
    )
