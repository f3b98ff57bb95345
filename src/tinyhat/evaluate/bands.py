"""Metrics per band of label frequency in training: frequent, few, zero-shot."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyhat.evaluate.ranking import ranking_values
from tinyhat.tune.decided import Csr, LabelCounts
from tinyhat.types import FloatArray, IntArray

K = 5


def band_labels(train_counts: IntArray, frequent: int) -> dict[str, IntArray]:
    """Return the label indices of each band: frequent >= `frequent` training documents, few 1 or more, zero_shot 0."""
    return {
        "frequent": np.flatnonzero(train_counts >= frequent),
        "few": np.flatnonzero((train_counts > 0) & (train_counts < frequent)),
        "zero_shot": np.flatnonzero(train_counts == 0),
    }


def band_metrics(
    logits_NL: FloatArray, true: Csr, counts: LabelCounts, train_counts: IntArray, frequent: int
) -> dict[str, dict[str, Any]]:
    """Return for each band: labels, positives, documents, micro_f1, macro_f1, recall_at_5, rp_at_5, ndcg_at_5.

    Ranking within a band follows Chalkidis et al. 2019 (table 3): only the band's labels compete, over the `documents`
    that have at least one of them. What is undefined is left out: everything for a band without labels, ranking for
    one without positives.

    Args:
        logits_NL: float32 [N, L].
        true: bool CSR [N, L].
        counts: per-label counts of the decisions.
        train_counts: int64 [L], training documents per label.
        frequent: training documents from which a label is called frequent.
    """
    by_column = true.tocsc()
    out: dict[str, dict[str, Any]] = {}
    for name, labels in band_labels(train_counts, frequent).items():
        part = LabelCounts(counts.positives[labels], counts.predicted[labels], counts.hits[labels])
        band: dict[str, Any] = {"labels": len(labels), "positives": int(part.positives.sum())}
        out[name] = band
        if len(labels) == 0:
            continue
        band |= {"micro_f1": part.micro_f1(), "macro_f1": float(part.f1().mean())}
        own = by_column[:, labels].tocsr()
        rows = np.flatnonzero(np.diff(own.indptr))
        band["documents"] = len(rows)
        if len(rows):
            # one gather: columns first, then rows, takes 0.16 s instead of 0.03 s for 3,000 documents x 3,362 labels
            values = ranking_values(logits_NL[np.ix_(rows, labels)], own[rows], (K,))
            band |= {f"{key}_at_{K}": float(values[f"{key}_at_{K}"].mean()) for key in ("recall", "rp", "ndcg")}
    return out
