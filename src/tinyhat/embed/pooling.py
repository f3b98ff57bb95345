"""Token states become one vector a document. All poolings but `max` are weighted sums, so windows simply add up.

N documents, S windows, T tokens of all windows, D width.
"""

from __future__ import annotations

import numpy as np
import torch

from tinyhat.embed.choice import Pooling
from tinyhat.embed.tokens import Windows
from tinyhat.types import FloatArray


def token_weights(windows: Windows, pooling: Pooling) -> FloatArray:
    """Return float32 [T], what each token of each window adds to its document's vector; 0 where it adds nothing.

    Special tokens count, as in sentence-transformers (its ``Pooling`` module, whose six modes these are). A place that
    several windows read shares its weight among them, which averages them.

    Args:
        windows: N documents.
        pooling: mean: 1/n; mean_sqrt: 1/sqrt(n); weighted: 2 i / (n (n + 1)) for the i-th token (Muennighoff 2022,
            "SGPT", section 3.1.2); cls and last: 1 for the first or last token. `max` has no weights.
    """
    document = np.repeat(np.repeat(np.arange(len(windows)), np.diff(windows.cu_documents)), windows.lengths)
    offsets = np.concatenate([[0], np.cumsum(windows.sizes)])
    place = offsets[document] + windows.slots
    readers = np.bincount(place, minlength=int(offsets[-1]))[place]
    size = windows.sizes[document].astype(np.float64)
    slot = windows.slots
    if pooling == "mean":
        weight = 1 / size
    elif pooling == "mean_sqrt":
        weight = 1 / np.sqrt(size)
    elif pooling == "weighted":
        weight = 2 * (slot + 1) / (size * (size + 1))
    elif pooling == "cls":
        weight = (slot == 0).astype(np.float64)
    elif pooling == "last":
        weight = (slot == size - 1).astype(np.float64)
    else:
        raise ValueError(f"{pooling} is no weighted sum")
    return (weight / readers).astype(np.float32)


def segment_sums(states_TD: torch.Tensor, weights_T: torch.Tensor, lengths_S: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of each window's rows, [S, D], row after row: the same bits whatever stands beside it.

    Args:
        states_TD: float32 [T, D].
        weights_T: float32 [T].
        lengths_S: int64 [S].
    """
    return torch.segment_reduce(states_TD * weights_T[:, None], "sum", lengths=lengths_S, axis=0)


def segment_max(states_TD: torch.Tensor, lengths_S: torch.Tensor) -> torch.Tensor:
    """Return the largest value of each window's rows, [S, D] (arguments as for `segment_sums`)."""
    return torch.segment_reduce(states_TD, "max", lengths=lengths_S, axis=0)
