"""Ranking metrics, one value per document, in one pass: the k best labels by partition, never a full sort.

At 6,000 x 4,271, scikit-learn's ndcg_score(k=10) alone takes about ten times as long as everything here.
Ties: the lower label index comes first, as in `decision`. A document without true labels counts 0 in every metric, as
in scikit-learn's ndcg_score and in its samples averages with zero_division=0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinyhat.tune.decided import ROWS, Csr
from tinyhat.types import FloatArray, IntArray

KS = (1, 3, 5, 10)

Values = dict[str, npt.NDArray[np.float64]]
"""Metric name to one number per document, float64 [N]."""


def top_labels(logits_NL: FloatArray, k: int) -> IntArray:
    """Return the indices of the min(k, L) best labels of every document, best first, int64 [N, min(k, L)]."""
    width = logits_NL.shape[1]
    k = min(k, width)
    best = np.empty((len(logits_NL), k), dtype=np.int64)
    for start in range(0, len(logits_NL), ROWS):
        block = logits_NL[start : start + ROWS]
        # the k-th best value of each row; ties with it are kept until the sort below can prefer the lower index
        last = np.partition(block, width - k, axis=1)[:, width - k]
        rows, columns = np.nonzero(block >= last[:, None])
        order = np.lexsort((columns, -block[rows, columns], rows))
        begin = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(block)))[:-1]])
        best[start : start + ROWS] = columns[order[begin[:, None] + np.arange(k)]]
    return best


def ranking_values(logits_NL: FloatArray, true: Csr, ks: tuple[int, ...] = KS) -> Values:
    """Return precision, recall, R-precision and nDCG at every k, per document.

    With Rel(k) the true labels among the k best and R the true labels of the document:

    * precision_at_k = Rel(k) / k
    * recall_at_k = Rel(k) / R
    * rp_at_k = Rel(k) / min(k, R), R-Precision@K of Chalkidis et al. 2019, "Large-Scale Multi-Label Text
      Classification on EU Legislation", section 5: a document with fewer than k labels can still reach 1
    * ndcg_at_k: binary gain, discount log2(1 + rank), over the best that could be reached (Järvelin and Kekäläinen
      2002); equal to scikit-learn's ndcg_score where no logits are tied

    Args:
        logits_NL: float32 [N, L].
        true: bool CSR [N, L].
        ks: cuts, ascending. A k above L is divided by as written: the missing places are misses.
    """
    best = top_labels(logits_NL, max(ks))
    relevant = np.zeros((len(best), max(ks)))
    relevant[:, : best.shape[1]] = _contains(true, best)
    found = np.cumsum(relevant, axis=1)
    discount = 1.0 / np.log2(np.arange(2, max(ks) + 2))
    gain = np.cumsum(relevant * discount, axis=1)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    size = np.diff(true.indptr)
    values: Values = {}
    for k in ks:
        values[f"precision_at_{k}"] = found[:, k - 1] / k
        values[f"recall_at_{k}"] = found[:, k - 1] / np.maximum(size, 1)
        values[f"rp_at_{k}"] = found[:, k - 1] / np.clip(size, 1, k)
        values[f"ndcg_at_{k}"] = gain[:, k - 1] / ideal[np.clip(size, 1, k)]
    return values


def reciprocal_ranks(logits_NL: FloatArray, true: Csr) -> npt.NDArray[np.float64]:
    """Return 1 / rank of the best-ranked true label of every document, float64 [N]; its mean is MRR (Voorhees 1999)."""
    out = np.zeros(len(logits_NL))
    size = np.diff(true.indptr)
    rows = np.repeat(np.arange(len(out)), size)
    scores = logits_NL[rows, true.indices]
    order = np.lexsort((true.indices, -scores, rows))
    labelled = np.flatnonzero(size)
    first = order[true.indptr[labelled]]
    score, label = scores[first], true.indices[first]
    columns = np.arange(logits_NL.shape[1])
    for start in range(0, len(labelled), ROWS):
        part = slice(start, start + ROWS)
        block, s = logits_NL[labelled[part]], score[part, None]
        tied = block == s
        before = np.count_nonzero(block > s, axis=1)
        if np.count_nonzero(tied) > len(block):  # each row is tied with itself once
            before = before + np.count_nonzero(tied & (columns < label[part, None]), axis=1)
        out[labelled[part]] = 1.0 / (1 + before)
    return out


def _contains(true: Csr, labels_NK: IntArray) -> npt.NDArray[np.bool_]:
    """Return bool [N, K]: whether a document has the label named there."""
    width = true.shape[1]
    rows = np.repeat(np.arange(true.shape[0], dtype=np.int64), np.diff(true.indptr))
    pairs = np.sort(rows * width + true.indices)
    wanted = np.arange(len(labels_NK), dtype=np.int64)[:, None] * width + labels_NK
    at = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    return pairs[at] == wanted if len(pairs) else np.zeros(labels_NK.shape, dtype=bool)
