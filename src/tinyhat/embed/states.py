"""Token states of a pack, from packed and from padded encoders alike, and the choice among their layers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import nn

from tinyhat.embed.choice import Layers
from tinyhat.encoder.forward import any_shape, forward_pack, length_groups, packed_inputs, rectangle
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.long import sparse_blocks
from tinyhat.head.output import output_layer
from tinyhat.types import Pack


def layer_states(encoder: Encoder, pack: Pack, device: torch.device, every: bool) -> list[torch.Tensor]:
    """Return the hidden states of a pack's T tokens, each [T, D], in the pack's order and the dtype they come in.

    Args:
        encoder: loaded, on `device`, in evaluation mode.
        pack: with ``position_ids`` counted from ``encoder.first_position``.
        device: where the encoder is.
        every: all of them as stock ``hidden_states`` counts them (the embedding output first); else the last alone.
    """
    body = encoder.model.base_model
    if encoder.packed:
        out = body(**packed_inputs(encoder, pack, device), output_hidden_states=every)
        return [h[0] for h in (out.hidden_states if every else (out.last_hidden_state,))]
    lengths = np.diff(pack.cu_seqlens).astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    parts: list[list[torch.Tensor]] = []
    for group in length_groups(lengths[order], *sparse_blocks(encoder.model)):
        inputs = rectangle(encoder, pack, order[group], lengths, device)
        with any_shape(device):
            out = body(**inputs, output_hidden_states=every)
        real = inputs["attention_mask"].bool()
        found = out.hidden_states if every else (out.last_hidden_state,)
        parts.append([h[:, : real.shape[1]][real] for h in found])  # BigBird's are filled up to whole blocks
    cu = pack.cu_seqlens
    rows = np.concatenate([np.arange(cu[s], cu[s + 1]) for s in order])
    back = torch.from_numpy(np.argsort(rows)).to(device)
    return [torch.cat(layer)[back] for layer in zip(*parts, strict=True)]


def combine(states: list[torch.Tensor], layers: Layers) -> torch.Tensor:
    """Return the chosen layers of `states` as one float32 [T, D] (concatenated: [T, D x chosen])."""
    chosen = [states[i].float() for i in layers.indices]
    if len(chosen) == 1:
        return chosen[0]
    if layers.combine == "concat":
        return torch.cat(chosen, dim=1)
    weights = layers.weights or (1 / len(chosen),) * len(chosen)
    total = chosen[0] * weights[0]
    for state, weight in zip(chosen[1:], weights[1:], strict=True):
        total += state * weight
    return total


class PreLogits:
    """Catches the vector that the last linear layer of a classifier sees, one a sequence; each thread its own.

    Args:
        encoder: a classifier.

    Attributes:
        width: D of the vectors.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self._seen = encoder, threading.local()
        layer = output_layer(encoder.model, int(encoder.model.config.num_labels))
        self.width = layer.in_features
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._seen.rows.append(args[0])

    def __call__(self, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return float32 [S, D] for the sequences of `pack`, in its order."""
        self._seen.rows = []
        forward_pack(self.encoder, pack, device)
        rows = torch.cat([r.reshape(-1, r.shape[-1]) for r in self._seen.rows]).float()
        if not self.encoder.packed:  # rectangles come longest first
            lengths = np.diff(pack.cu_seqlens)
            rows = rows[torch.from_numpy(np.argsort(np.argsort(-lengths, kind="stable"))).to(rows.device)]
        return rows
