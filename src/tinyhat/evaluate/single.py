"""What only the single task has: log loss, calibration error, and which labels are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyhat.decision import activate
from tinyhat.types import FloatArray, IntArray

BINS = 15
MATRIX = 100  # labels up to which the whole confusion matrix is kept
PAIRS = 30


def probability_metrics(logits_NL: FloatArray, labels_N: IntArray) -> dict[str, float]:
    """Return log_loss (nats) and calibration_error of softmax probabilities.

    calibration_error is the expected calibration error of the best label over 15 bins of equal width (Guo et al. 2017,
    "On Calibration of Modern Neural Networks", equation 3). Documents whose label is outside the label space (-1) are
    left out of log_loss, where they would be infinite, and are errors in calibration_error.

    Args:
        logits_NL: float32 [N, L].
        labels_N: int64 [N], the true label or -1.
    """
    probabilities = activate(logits_NL, "softmax").astype(np.float64)
    known = np.flatnonzero(labels_N >= 0)
    out: dict[str, float] = {}
    if len(known):
        p = probabilities[known, labels_N[known]]
        out["log_loss"] = float(-np.log(np.maximum(p, np.finfo(np.float32).tiny)).mean())
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels_N).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    out["calibration_error"] = float(np.abs(gaps).sum() / len(labels_N))
    return out


def confusion(labels_N: IntArray, decided_N: IntArray, names: Sequence[str]) -> dict[str, Any]:
    """Return which labels are taken for which.

    Returns:
        ``pairs``: [true name, decided name, documents], the 30 commonest mistakes; ``matrix``: documents per true (row)
        and decided (column) label, for at most 100 labels; ``outside``: documents whose label is outside the label
        space, which are in neither.
    """
    width = len(names)
    known = labels_N >= 0
    codes, counts = np.unique(labels_N[known] * width + decided_N[known], return_counts=True)
    true, found = codes // width, codes % width
    wrong = np.flatnonzero(true != found)
    worst = wrong[np.argsort(-counts[wrong], kind="stable")][:PAIRS]
    out: dict[str, Any] = {
        "pairs": [[names[true[i]], names[found[i]], int(counts[i])] for i in worst],
        "outside": int((~known).sum()),
    }
    if width <= MATRIX:
        matrix = np.zeros((width, width), dtype=np.int64)
        matrix[true, found] = counts
        out["matrix"] = matrix.tolist()
    return out
