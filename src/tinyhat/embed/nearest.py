"""Nearest rows of a store, whatever it was written as: a scan in blocks, bits first and numbers after, or FAISS.

Q queries, N rows, D width, C candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyhat.embed.embedder import normalized
from tinyhat.embed.quantize import decode
from tinyhat.embed.store import ids_path, manifest_path, read_ids, read_manifest, read_store
from tinyhat.errors import UserError, missing_extra
from tinyhat.types import FloatArray, IntArray

BLOCK = 8192  # rows at a time: 8,192 x 768 float32 is 25 MB
RESCORED = 16  # candidates by Hamming distance for every row wanted


class Rows(ABC):
    """The rows of a store, with their ids, that can be asked for the nearest.

    Attributes:
        ids: N ids.
        manifest: of the store.
        measure: ``score`` (cosine) or ``distance`` (squared Euclidean, of a FAISS index of vectors of any length).
    """

    ids: list[Any]
    manifest: dict[str, Any]
    measure = "score"

    @abstractmethod
    def nearest(self, queries_QD: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Return the rows int64 [Q, k] nearest to float32 [Q, D] and their scores float32 [Q, k], nearest first.

        Among equal scores the lower row comes first (FAISS: in its own order).
        """


class Scanned(Rows):
    """float32, float16 or int8 rows (decoded by their calibration): exact cosines with all of them."""

    def __init__(self, ids: list[Any], vectors: npt.NDArray[Any], manifest: dict[str, Any]) -> None:
        self.ids, self.vectors, self.manifest = ids, vectors, manifest

    def nearest(self, queries_QD: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Scan all rows, block after block."""
        rows = np.zeros((len(queries_QD), 0), np.int64)
        scores = np.zeros((len(queries_QD), 0), np.float32)
        for start in range(0, len(self.ids), BLOCK):
            block = normalized(decode(self.vectors[start : start + BLOCK], self.manifest))
            here = np.broadcast_to(np.arange(start, start + len(block)), (len(queries_QD), len(block)))
            rows = np.concatenate([rows, here], axis=1)
            scores = np.concatenate([scores, queries_QD @ block.T], axis=1)
            rows, scores = _best(rows, scores, k)
        return rows, scores


class Bits(Rows):
    """Binary rows: candidates by Hamming distance, then the query's own numbers against their signs.

    The second look is that of Yamada et al. 2021, "Efficient Passage Retrieval with Hashing for Open-domain Question
    Answering", section 3: the query is not cut down to bits where it need not be.
    """

    def __init__(self, ids: list[Any], vectors: npt.NDArray[Any], manifest: dict[str, Any]) -> None:
        self.ids, self.vectors, self.manifest = ids, vectors, manifest

    def nearest(self, queries_QD: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Take RESCORED k candidates by bits and score those."""
        rows = np.empty((len(queries_QD), k), np.int64)
        scores = np.empty((len(queries_QD), k), np.float32)
        for q, query in enumerate(queries_QD):
            candidates = self._by_bits(np.packbits(query > 0), min(RESCORED * k, len(self.ids)))
            signs = normalized(decode(self.vectors[candidates], self.manifest))
            best, cosines = _best(candidates[None], (signs @ query)[None], k)
            rows[q], scores[q] = best[0], cosines[0]
        return rows, scores

    def _by_bits(self, query: npt.NDArray[np.uint8], count: int) -> IntArray:
        distances = np.empty(len(self.ids), np.int64)
        for start in range(0, len(self.ids), BLOCK):
            different = np.bitwise_xor(self.vectors[start : start + BLOCK], query)
            distances[start : start + BLOCK] = np.bitwise_count(different).sum(axis=1, dtype=np.int64)
        found: IntArray = np.argsort(distances, kind="stable")[:count]
        return np.sort(found)


class Faiss(Rows):
    """A FAISS index, asked itself; inverted lists and graphs are searched wider than FAISS does by default."""

    def __init__(self, path: Path, ids: list[Any], manifest: dict[str, Any]) -> None:
        try:
            import faiss
        except ImportError:
            raise missing_extra("faiss-cpu", "embed", "searching .faiss") from None
        try:
            index: Any = faiss.read_index(str(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path} is damaged or cut off ({reason}): copy it again or embed again") from None
        self.index = index
        if self.index.ntotal != len(ids) or self.index.d != manifest["width"]:
            raise UserError(
                f"{path} has {self.index.ntotal} vectors of {self.index.d} numbers, its manifest and ids say "
                f"{len(ids)} of {manifest['width']}: they do not belong together, embed again"
            )
        self.ids, self.manifest = ids, manifest
        if self.index.metric_type == faiss.METRIC_L2:
            self.measure = "distance"
        self._lists = hasattr(self.index, "nprobe")
        if self._lists:
            self.index.nprobe = max(8, self.index.nlist // 16)

    def nearest(self, queries_QD: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Ask the index; a row of -1 stands where its lists held fewer than `k`."""
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = max(64, 2 * k)
        scores, rows = self.index.search(np.ascontiguousarray(queries_QD), k)
        return rows.astype(np.int64), scores


def open_rows(path: Path) -> Rows:
    """Open a store for search by the name it was written to.

    Raises:
        UserError: as `read_store`; an index that does not fit its manifest.
    """
    if path.suffix.lower() == ".faiss" and path.exists() and manifest_path(path).exists() and ids_path(path).exists():
        return Faiss(path, read_ids(path), read_manifest(path))
    store = read_store(path)
    return (Bits if store.manifest["dtype"] == "binary" else Scanned)(*store)


def _best(rows_QC: IntArray, scores_QC: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Return the `k` best of each query's candidates, best first, among equals in the order they come."""
    if scores_QC.shape[1] > 4 * k:  # what is below the k-th best score need not be sorted; what equals it must be
        cut = np.partition(scores_QC, -k, axis=1)[:, -k, None]
        most = int((scores_QC >= cut).sum(axis=1).max())
        kept = np.sort(np.argpartition(-scores_QC, min(most, scores_QC.shape[1] - 1), axis=1)[:, :most], axis=1)
        rows_QC, scores_QC = _columns(rows_QC, scores_QC, kept)
    return _columns(rows_QC, scores_QC, np.argsort(-scores_QC, axis=1, kind="stable")[:, :k])


def _columns(rows_QC: IntArray, scores_QC: FloatArray, order: IntArray) -> tuple[IntArray, FloatArray]:
    return np.take_along_axis(rows_QC, order, axis=1), np.take_along_axis(scores_QC, order, axis=1)
