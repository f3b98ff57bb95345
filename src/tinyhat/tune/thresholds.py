"""Exact best-F1 thresholds by sort and sweep: one per label, or one for all.

F1 of a cut is 2 tp / (predicted + positives). It can only be best just below a positive's logit (going on to a
negative adds a prediction and no hit), so positives are the only candidates, and what a sort gives is how many logits
lie at or above each. Thresholds lie midway between neighbouring dev logits, in float64: a float32 logit is never
equal to one, and equal logits are never parted. N documents, L labels, P positives.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinyhat.tune.decided import Csr
from tinyhat.types import FloatArray

LABELS = 256  # columns sorted at a time: 256 x 6,000 float32 is 6 MB
PROBES = 17
MARGIN = 0.05  # logits; bf16 keeps about this much of a logit near 8


def best_cut(sorted_N: FloatArray, positives_P: FloatArray, missed: int = 0) -> float:
    """Return the threshold with the best F1; among equals the highest.

    Args:
        sorted_N: float32 logits of one label, ascending; positives included.
        positives_P: the logits of the positives, P >= 1, in any order.
        missed: further positives whose logits are known to lie below any useful cut.
    """
    cuts = np.sort(positives_P)
    predicted = len(sorted_N) - np.searchsorted(sorted_N, cuts, side="left")
    hits = len(cuts) - np.searchsorted(cuts, cuts, side="left")
    f1 = 2.0 * hits / (predicted + len(cuts) + missed)
    best = len(cuts) - 1 - int(np.argmax(f1[::-1]))
    return _midway(sorted_N, cuts[best])


def _midway(sorted_N: FloatArray, cut: np.float32) -> float:
    """Return the middle between `cut` and the next lower logit; 1 below where there is none."""
    below = int(np.searchsorted(sorted_N, cut, side="left")) - 1
    return (float(cut) + float(sorted_N[below])) / 2 if below >= 0 else float(cut) - 1.0


def _clear(sorted_N: FloatArray, threshold: float) -> float:
    """Move a threshold away from dev logits it nearly touches, without changing any decision on them.

    At least MARGIN away, or midway where the neighbours are closer than that: recomputing the same documents in other
    batches moves logits in the last bits, and must not flip what the dev figures were made of.
    """
    above = int(np.searchsorted(sorted_N, threshold, side="right"))
    low = float(sorted_N[above - 1]) if above > 0 else -np.inf
    high = float(sorted_N[above]) if above < len(sorted_N) else np.inf
    margin = min(MARGIN, (high - low) / 2)
    return min(max(threshold, low + margin), high - margin)


def global_threshold(logits_NL: FloatArray, true: Csr) -> float:
    """Return the one threshold over all labels with the best micro-F1, exactly.

    Args:
        logits_NL: float32 [N, L].
        true: bool CSR [N, L] with at least one True.

    A cut that takes more than P (2 - f) / f logits has F1 <= 2 P / (predicted + P) < f, whatever it hits. Probing a
    few cuts gives such an f, and only the logits above that reach are sorted: 0.3 s instead of 1.2 s for 25.6 million.
    """
    positives = np.sort(logits_NL[_rows(true), true.indices])
    probes = np.unique(positives[np.linspace(0, len(positives) - 1, PROBES).astype(int)])
    predicted = np.array([np.count_nonzero(logits_NL >= probe) for probe in probes])
    hits = len(positives) - np.searchsorted(positives, probes, side="left")
    known = float(np.max(2.0 * hits / (predicted + len(positives))))
    # the slack is for rounding: a cut that reaches f with every positive found sits exactly on the bound
    useless = probes[predicted > len(positives) * (2 - known) / known * (1 + 1e-9)]
    floor = useless.max() if len(useless) else -np.inf
    useful = positives[positives >= floor]
    candidates = np.sort(logits_NL[logits_NL >= floor])
    return best_cut(candidates, useful, missed=len(positives) - len(useful))


def label_thresholds(logits_NL: FloatArray, true: Csr, fallback: float, shrink: float) -> npt.NDArray[np.float64]:
    """Return one threshold per label, float64 [L]: the label's own best-F1 cut, shrunk to `fallback`.

    Args:
        logits_NL: float32 [N, L].
        true: bool CSR [N, L].
        fallback: the global threshold; labels without a positive here get exactly this.
        shrink: a label with P positives weighs its own threshold by P / (P + shrink), in logits; 0: no shrinking.

    The best cut of a label with few positives follows their accidents (Lipton, Elkan and Naryanaswamy 2014,
    "Optimal thresholding of classifiers to maximize F1 measure", section 5); shrinking to a shared value is the remedy.
    """
    thresholds = np.full(logits_NL.shape[1], fallback, dtype=np.float64)
    counts = np.bincount(true.indices, minlength=logits_NL.shape[1])
    by_label = np.argsort(true.indices, kind="stable")
    positives = logits_NL[_rows(true), true.indices][by_label]
    ends = np.cumsum(counts)
    labels = np.flatnonzero(counts)
    for start in range(0, len(labels), LABELS):
        block = labels[start : start + LABELS]
        columns = np.ascontiguousarray(logits_NL[:, block].T)
        columns.sort(axis=1)
        for column, label in zip(columns, block, strict=True):
            count = int(counts[label])
            own = best_cut(column, positives[ends[label] - count : ends[label]])
            shrunk = (count * own + shrink * fallback) / (count + shrink)
            thresholds[label] = _clear(column, shrunk)
    return thresholds


def _rows(matrix: Csr) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
