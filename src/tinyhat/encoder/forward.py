"""A pack through an encoder: one [1, T] forward with boundaries, or padded batches by length. S sequences, L labels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinyhat.encoder.load import Encoder
from tinyhat.encoder.long import long_inputs, sparse_blocks
from tinyhat.types import IntArray, Pack

MAX_PADDING = 0.15  # share of padding in a padded batch before it is split
ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return `array` as a tensor on `device`; to a GPU through pinned memory, so that the host goes on at once.

    A copy from ordinary memory waits until the GPU has done all it was given: once a pack, and it stands still.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def forward_pack(encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
    """Return the logits of every sequence of `pack`, [S, L], in the pack's order.

    Args:
        encoder: loaded, and on `device`.
        pack: with ``position_ids`` counted from ``encoder.first_position``.
        device: where the encoder is.
    """
    return _packed(encoder, pack, device) if encoder.packed else _padded(encoder, pack, device)


def _packed(encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
    return encoder.model(**packed_inputs(encoder, pack, device), gather=True).logits


def packed_inputs(encoder: Encoder, pack: Pack, device: torch.device) -> dict[str, Any]:
    """Return a pack as the keywords of a packed forward, all of [1, T]; arguments as for `forward_pack`."""
    inputs: dict[str, Any] = {
        "input_ids": to_device(pack.input_ids, device)[None],
        "position_ids": to_device(pack.position_ids, device)[None],
        "cu_seqlens": to_device(pack.cu_seqlens, device),
        "max_seqlen": pack.max_seqlen,
    }
    if pack.token_type_ids is not None and encoder.takes_token_types:
        inputs["token_type_ids"] = to_device(pack.token_type_ids, device)[None]
    return inputs


def _padded(encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
    lengths = np.diff(pack.cu_seqlens).astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    groups = length_groups(lengths[order], *sparse_blocks(encoder.model))
    logits = [_rectangle(encoder, pack, order[group], lengths, device) for group in groups]
    back = to_device(np.argsort(order), device)
    return torch.cat(logits)[back]


def length_groups(descending: IntArray, block: int = 0, sparse_from: int = 0) -> list[slice]:
    """Cut sequences sorted by falling length into batches with at most MAX_PADDING of padding.

    Those of at least `sparse_from` tokens share a batch only where they have as many blocks, of `block` tokens:
    BigBird's last block is seen by all, so how far a sequence is padded changes what it means.

    Args:
        descending: int64 [S] tokens.
        block: of `sparse_blocks`; 0: length is all that counts.
        sparse_from: of `sparse_blocks`.
    """
    groups, begin, tokens = [], 0, 0
    for end, length in enumerate(descending):
        padded = tokens + length < (1 - MAX_PADDING) * descending[begin] * (end + 1 - begin)
        apart = block > 0 and descending[begin] >= sparse_from and -(-length // block) != -(-descending[begin] // block)
        if end > begin and (padded or apart):
            groups.append(slice(begin, end))
            begin, tokens = end, 0
        tokens += int(length)
    return [*groups, slice(begin, len(descending))]


def _rectangle(
    encoder: Encoder, pack: Pack, sequences: IntArray, lengths: IntArray, device: torch.device
) -> torch.Tensor:
    with any_shape(device):
        return encoder.model(**rectangle(encoder, pack, sequences, lengths, device)).logits


def any_shape(device: torch.device) -> AbstractContextManager[None]:
    """Return the context for padded batches on a GPU, each of another shape: SDPA without cuDNN.

    cuDNN, SDPA's first choice on Hopper, plans anew for every shape, forward and backward: with it a padded step took
    794 ms on an H200, without it 200 (RoBERTa-base, 256 documents; fused parts between products came in between).
    """
    return sdpa_kernel(ANY_SHAPE) if device.type == "cuda" else nullcontext()


def rectangle(
    encoder: Encoder, pack: Pack, sequences: IntArray, lengths: IntArray, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return some sequences of a pack as a padded batch: the keywords of a stock forward, each [B, longest].

    Args:
        encoder: says what pads, and whether token types are known.
        pack: holds them.
        sequences: int64 [B], which.
        lengths: int64 [S], tokens of every sequence of the pack.
        device: where the batch goes.
    """
    within = np.arange(lengths[sequences].max())
    real = within < lengths[sequences, None]
    source = np.where(real, pack.cu_seqlens[sequences, None] + within, 0)
    inputs = {
        "input_ids": to_device(np.where(real, pack.input_ids[source], encoder.pad_token_id), device),
        "attention_mask": to_device(real.astype(np.int64), device),
    }
    if pack.token_type_ids is not None and encoder.takes_token_types:
        inputs["token_type_ids"] = to_device(np.where(real, pack.token_type_ids[source], 0), device)
    return inputs | long_inputs(encoder.model, inputs["attention_mask"])
