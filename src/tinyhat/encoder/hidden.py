"""What an encoder makes of a pack: the states behind every layer, and its masked-LM loss. T tokens, D width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from tinyhat.encoder.forward import packed_inputs, rectangle
from tinyhat.encoder.load import Encoder, load_masked_lm_model
from tinyhat.types import NOT_ASKED, IntArray, Pack


def plain_batches(encoder: Encoder, pack: Pack, device: torch.device) -> Iterator[tuple[dict[str, Any], IntArray]]:
    """Yield inputs of the body without any padding, and which tokens of the pack they hold, int64 [n, length].

    One batch of one row where the encoder runs packed, otherwise one batch for each length.
    """
    if encoder.packed:
        yield packed_inputs(encoder, pack, device), np.arange(pack.tokens)[None]
        return
    lengths = np.diff(pack.cu_seqlens).astype(np.int64)
    for length in np.unique(lengths):
        sequences = np.flatnonzero(lengths == length)
        where = pack.cu_seqlens[sequences].astype(np.int64)[:, None] + np.arange(length)
        yield rectangle(encoder, pack, sequences, lengths, device), where


def hidden_states(encoder: Encoder, pack: Pack, device: torch.device) -> list[torch.Tensor]:
    """Return the states of every token behind the embeddings and behind every layer, fp32 [T, D] each.

    Args:
        encoder: on `device`.
        pack: with positions counted from ``encoder.first_position``.
        device: where the encoder is.
    """
    body = encoder.model.base_model
    out: list[torch.Tensor] = []
    for inputs, where in plain_batches(encoder, pack, device):
        states = body(**inputs, output_hidden_states=True).hidden_states
        rows = torch.from_numpy(where.reshape(-1)).to(device)
        for i, state in enumerate(states):
            if len(out) <= i:
                out.append(torch.zeros(pack.tokens, state.shape[-1], device=device))
            out[i][rows] = state[:, : where.shape[1]].float().flatten(0, 1)  # BigBird fills its last block up
    return out


class MaskedHead:
    """The masked-LM head of the checkpoint on the body of a classifier: the body is shared, the head stays frozen.

    Args:
        model: a ``*ForMaskedLM`` whose body is the classifier's.
        mask_id: of [MASK].
    """

    def __init__(self, model: PreTrainedModel, mask_id: int) -> None:
        self.model, self.mask_id = model, mask_id

    def loss(self, encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return the cross-entropy summed over the tokens of `pack` that are asked for, in nats, fp32.

        Args:
            encoder: whose body it is.
            pack: masked, with token targets.
            device: where the encoder is.
        """
        assert pack.token_targets is not None
        self._follow_body()
        total = torch.zeros((), device=device)
        for inputs, where in plain_batches(encoder, pack, device):
            logits = self.model(**inputs).logits.flatten(0, 1)
            asked = torch.from_numpy(pack.token_targets[where].reshape(-1)).to(device)
            kept = asked != NOT_ASKED
            total = total + functional.cross_entropy(logits[kept].float(), asked[kept], reduction="sum")
        return total

    def _follow_body(self) -> None:
        """Put the head where the body is by now: a trainer moves that to its device, a plan may store it in 16 bits."""
        like, body = self.model.get_input_embeddings().weight, self.model.base_model
        with torch.inference_mode(False), torch.no_grad():
            for part in self.model.children():
                if part is not body:
                    part.to(like.device, like.dtype)


def load_masked_lm(encoder: Encoder) -> MaskedHead | None:
    """Load the checkpoint's masked-LM head onto the encoder's body; None where the checkpoint has none.

    Args:
        encoder: as `load_encoder` returned it.
    """
    mask_id = encoder.tokenizer.mask_token_id
    if mask_id is None:
        return None
    model = load_masked_lm_model(encoder.name)
    if model is None:
        return None
    setattr(model, model.base_model_prefix, encoder.model.base_model)
    model.tie_weights()
    body = {id(p) for p in encoder.model.base_model.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in body:
            parameter.requires_grad_(False)
    return MaskedHead(model, int(mask_id))
