"""Truth and decisions as sparse bool matrices [N, L], and the counts that precision, recall and F1 are made of.

Sparse on both sides: at 6,000 x 4,271, scikit-learn's f1_score takes 0.02 s on CSR and 1.7 s on dense arrays.
Letters: N documents of a split, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tinyhat.decision import Rule
from tinyhat.errors import UserError
from tinyhat.types import FloatArray, IntArray, Scores, Targets

Csr = sparse.csr_array[Any, tuple[int, int]]
"""bool [N, L] in compressed rows, True entries only."""

ROWS = 512  # documents worked on at a time: 512 x 4,271 float64 is 17 MB


@dataclass(frozen=True)
class LabelCounts:
    """Per label, each int64 [L]: documents that have it, that were given it, and both (true positives)."""

    positives: IntArray
    predicted: IntArray
    hits: IntArray

    def f1(self) -> npt.NDArray[np.float64]:
        """Return F1 per label, float64 [L]; 0 where a label is neither true nor predicted (zero_division=0)."""
        total = self.positives + self.predicted
        return np.divide(2.0 * self.hits, total, out=np.zeros(len(total)), where=total > 0)

    def micro_f1(self) -> float:
        """Return F1 over all document-label pairs; 0 where nothing is true or predicted."""
        total = int(self.positives.sum() + self.predicted.sum())
        return 2.0 * int(self.hits.sum()) / total if total else 0.0


def require_targets(scores: Scores) -> Targets:
    """Return the true targets of `scores` once they are known to fit finite logits.

    Raises:
        UserError: there are no targets, or a logit is NaN or infinite.
        ValueError: targets and logits differ in shape.
    """
    targets = scores.targets
    if targets is None:
        raise UserError("these scores carry no true labels, so there is nothing to measure: give data with labels")
    if scores.logits.shape != (len(targets), targets.width):
        raise ValueError(
            f"logits of shape {scores.logits.shape} do not fit targets of {len(targets)} x {targets.width}"
        )
    if len(targets) == 0:
        raise UserError("the scores hold no document: use a split that is not empty")
    # NaN survives min and max, so two passes tell, without a bool matrix
    if not np.isfinite([scores.logits.min(), scores.logits.max()]).all():
        row = int(np.flatnonzero(~np.isfinite(scores.logits).all(axis=1))[0])
        raise UserError(
            f"the logits of document {scores.ids[row]!r} are NaN or infinite: training diverged; "
            "lower train.learning_rate and train again"
        )
    return targets


def truth(targets: Targets) -> Csr:
    """Return the true labels as bool CSR [N, L] (single: one-hot, an empty row where the label is outside)."""
    assert targets.task != "regression", "regression targets are numbers, not labels"
    shape = (len(targets), targets.width)
    values = targets.values.astype(np.int64)
    if targets.indptr is not None:
        return sparse.csr_array((np.ones(len(values), dtype=bool), values, targets.indptr), shape=shape)
    indptr = np.concatenate([[0], np.cumsum(values >= 0)])
    values = values[values >= 0]
    return sparse.csr_array((np.ones(len(values), dtype=bool), values, indptr), shape=shape)


def decide(rule: Rule, logits_NL: FloatArray) -> Csr:
    """Apply `rule` to float32 [N, L] logits in blocks of rows; return the decisions as bool CSR [N, L]."""
    chosen: list[IntArray] = []
    counts: list[IntArray] = [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(logits_NL), ROWS):
        rows, columns = np.nonzero(rule.decide(logits_NL[start : start + ROWS]))
        chosen.append(columns)
        counts.append(np.bincount(rows, minlength=len(logits_NL[start : start + ROWS])))
    indices = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
    indptr = np.cumsum(np.concatenate(counts))
    return sparse.csr_array((np.ones(len(indices), dtype=bool), indices, indptr), shape=logits_NL.shape)


def label_counts(true: Csr, decided: Csr) -> LabelCounts:
    """Count positives, predicted and hits per label of two bool CSR [N, L]."""
    width = true.shape[1]
    hits = true.multiply(decided).tocsr()

    def columns(matrix: Csr) -> IntArray:
        return np.bincount(matrix.indices, minlength=width).astype(np.int64)

    return LabelCounts(columns(true), columns(decided), columns(hits))
