"""Hidden states of every layer with the conventions of stock transformers. B documents, n tokens, D width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyhat.embed.forward import Forward
from tinyhat.embed.tokens import Windows
from tinyhat.types import FloatArray, IntArray


@dataclass(frozen=True)
class HiddenStates:
    """The states of B documents, padded with zeros behind their ends. ``states[0]`` is the embedding output.

    Attributes:
        hidden_states: layers + 1 arrays, float32 [B, n, D].
        attention_mask: int64 [B, n], 1 where a token is.
        input_ids: int64 [B, n], 0 where none is.
        offsets: int32 [B, n, 2], characters of each token in its text; (0, 0) for special tokens.
    """

    hidden_states: tuple[FloatArray, ...]
    attention_mask: IntArray
    input_ids: IntArray
    offsets: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.hidden_states)

    def __getitem__(self, layer: int) -> FloatArray:
        return self.hidden_states[layer]

    def __iter__(self) -> Iterator[FloatArray]:
        return iter(self.hidden_states)


def padded_states(forward: Forward, windows: Windows, budget: int, first: int) -> HiddenStates:
    """Compute the states of documents that are one window each.

    Args:
        forward: the encoder.
        windows: read with words, for the offsets.
        budget: tokens of a forward pass.
        first: special tokens at the beginning of a sequence.
    """
    assert windows.offsets is not None
    lengths = windows.lengths
    shape = (len(windows), int(lengths.max(initial=0)))
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    ids = np.zeros(shape, np.int64)
    ids[mask == 1] = windows.input_ids
    offsets = np.zeros((*shape, 2), np.int32)
    for b, own in enumerate(windows.offsets):
        offsets[b, first : first + len(own)] = own
    states: list[FloatArray] = []
    for rows, layers in forward.every_layer(windows, budget):
        if not states:
            states = [np.zeros((*shape, layer[0].shape[1]), np.float32) for layer in layers]
        for out, layer in zip(states, layers, strict=True):
            for row, found in zip(rows.tolist(), layer, strict=True):
                out[row, : len(found)] = found
    return HiddenStates(tuple(states), mask, ids, offsets)
