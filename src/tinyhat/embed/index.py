"""A FAISS index whose kind follows from the number of vectors, built by one thread: the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.types import FloatArray

FLAT, HNSW, IVF = 20_000, 200_000, 2_000_000  # most vectors of each kind; beyond them IVF with product quantisation
PER_CENTROID = 64  # training vectors a list; FAISS warns below 39
SEED = 1234


def describe_index(rows: int, columns: int) -> str:
    """Return the FAISS factory string for `rows` vectors of `columns` dimensions.

    Exact search while it takes a few milliseconds; a graph while its building by one thread takes minutes and its links
    fit in memory; then inverted lists, about 4 sqrt(n) of them (FAISS's guidelines to choose an index), and beyond two
    million vectors codes of a byte for every 4 to 8 dimensions.
    """
    if rows <= FLAT:
        return "Flat"
    if rows <= HNSW:
        return "HNSW32"
    lists = 1 << round(float(np.log2(4 * rows**0.5)))
    if rows <= IVF:
        return f"IVF{lists},Flat"
    pieces = next(m for m in range(max(1, columns // 4), 0, -1) if columns % m == 0)
    return f"IVF{lists},PQ{pieces}"


def write_index(
    path: Path, rows: int, columns: int, chunks: Callable[[], Iterator[FloatArray]], normalized: bool
) -> None:
    """Build and write an index; the number of a vector in it is its row, which the ids file names.

    Args:
        path: where.
        rows: vectors.
        columns: D.
        chunks: gives float32 [n, D] blocks from the beginning, as often as it is called.
        normalized: vectors of length 1: inner product, which is the cosine; else Euclidean distance.
    """
    import faiss

    with _one_thread(faiss):
        metric = faiss.METRIC_INNER_PRODUCT if normalized else faiss.METRIC_L2
        index = faiss.index_factory(columns, describe_index(rows, columns), metric)
        if not index.is_trained:
            lists = faiss.extract_index_ivf(index)
            lists.cp.seed = SEED
            index.train(_sample(chunks, rows, PER_CENTROID * max(lists.nlist, 256)))
        for block in chunks():
            index.add(block)
        faiss.write_index(index, str(path))


def _sample(chunks: Callable[[], Iterator[FloatArray]], rows: int, most: int) -> FloatArray:
    """Return every k-th row, at most `most` of them."""
    step, begin, kept = -(-rows // most), 0, []
    for block in chunks():
        kept.append(block[-begin % step :: step])
        begin += len(block)
    return np.concatenate(kept)


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
