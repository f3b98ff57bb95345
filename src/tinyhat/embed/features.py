"""Every layer under every pooling, from one forward pass a document: what a probe of layers looks at.

N documents, K hidden states (layers + 1), P poolings, D width, n tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyhat.embed.choice import POOLINGS
from tinyhat.embed.embedder import Embedder
from tinyhat.embed.parts import disk_errors, reserve
from tinyhat.embed.pooling import token_weights
from tinyhat.types import FloatArray

CHUNK = 256  # documents whose pooled layers are in memory: with 12 layers of 768 numbers 61 MB
SUMS = tuple(name for name in POOLINGS if name != "max")  # poolings that are weighted sums


def layer_features(
    embedder: Embedder, texts: Sequence[str], file: Path, progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.float32]:
    """Pool every hidden state of every text in every way, into a memory map, so that memory stays flat.

    Args:
        embedder: its encoder, tokens and windows are used; its choice of layers is not.
        texts: N texts.
        file: where the memory map goes (.npy).
        progress: told how many more documents are done.

    Returns:
        float32 [K, P, N, D], poolings in the order of `POOLINGS`. Where windows overlap, `max` takes the largest value
        of either reading; the sums average them, as embeddings do.

    Raises:
        OSError: the disk is full.
    """
    width, layers = int(embedder.encoder.model.config.hidden_size), embedder.layer_count + 1
    shape = (layers, len(POOLINGS), len(texts), width)
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    with disk_errors(file), file.open("r+b") as stream:  # a page of a sparse file on a full disk ends the process
        reserve(stream, file.stat().st_size)
    for start in range(0, len(texts), CHUNK):
        part = list(texts[start : start + CHUNK])
        out[:, :, start : start + len(part)] = _pooled(embedder, part, shape)
        if progress:
            progress(len(part))
    return out


def _pooled(embedder: Embedder, texts: list[str], shape: tuple[int, ...]) -> FloatArray:
    windows = embedder.reader.read(texts)
    weights = np.stack([token_weights(windows, name) for name in SUMS])
    owner = np.repeat(np.arange(len(windows)), np.diff(windows.cu_documents))
    sums = np.zeros((shape[0], len(SUMS), len(texts), shape[3]), np.float32)
    largest = np.full((shape[0], len(texts), shape[3]), -np.inf, np.float32)
    for rows, states in embedder.forward.every_layer(windows, embedder.budget):
        for i, window in enumerate(rows.tolist()):
            document = owner[window]
            own = weights[:, windows.cu_windows[window] : windows.cu_windows[window + 1]]
            for k, layer in enumerate(states):
                sums[k, :, document] += own @ layer[i]
                np.maximum(largest[k, document], layer[i].max(axis=0), out=largest[k, document])
    columns = iter(range(len(SUMS)))
    return np.stack([largest if name == "max" else sums[:, next(columns)] for name in POOLINGS], axis=1)
