"""Label by label: the table behind the report's best and worst labels, and the micro precision-recall curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyhat.decision import Rule, activate
from tinyhat.tune.decided import ROWS, Csr, label_counts, require_targets, truth
from tinyhat.types import IntArray, Scores


@dataclass(frozen=True)
class LabelRow:
    """One label. `positives` are true documents of the split; threshold None: the rule has none, or never chooses."""

    name: str
    train_documents: int | None
    positives: int
    predicted: int
    precision: float
    recall: float
    f1: float
    threshold: float | None


def label_table(
    scores: Scores, decided: Csr, names: Sequence[str], train_counts: IntArray | None = None, rule: Rule | None = None
) -> list[LabelRow]:
    """Return one row per label, in label order; precision, recall and F1 are 0 where undefined.

    Args:
        scores: with the true targets (single or multi).
        decided: bool CSR [N, L].
        names: the L label names.
        train_counts: int64 [L], or None where unknown.
        rule: whose thresholds (logits) are shown, or None.
    """
    counts = label_counts(truth(require_targets(scores)), decided)
    f1 = counts.f1()
    thresholds: list[float | None] = [None] * len(names)
    if rule is not None and rule.kind in ("thresholds", "global"):
        thresholds = [float(t) if np.isfinite(t) else None for t in rule.threshold_row(len(names))]
    return [
        LabelRow(
            name=name,
            train_documents=None if train_counts is None else int(train_counts[j]),
            positives=int(counts.positives[j]),
            predicted=int(counts.predicted[j]),
            precision=float(counts.hits[j] / counts.predicted[j]) if counts.predicted[j] else 0.0,
            recall=float(counts.hits[j] / counts.positives[j]) if counts.positives[j] else 0.0,
            f1=float(f1[j]),
            threshold=thresholds[j],
        )
        for j, name in enumerate(names)
    ]


def worst_and_best(table: Sequence[LabelRow], count: int, least: int = 5) -> tuple[list[LabelRow], list[LabelRow]]:
    """Return the `count` labels with the lowest and the highest F1, extreme first.

    Only labels with at least `least` positives take part, because F1 over fewer is chance; labels with equal F1 are
    ordered by positives, most first. A label is never in both.
    """
    known = [row for row in table if row.positives >= least]
    count = min(count, len(known) // 2)
    worst = sorted(known, key=lambda row: (row.f1, -row.positives))
    best = sorted(known, key=lambda row: (-row.f1, -row.positives))
    return worst[:count], [row for row in best if row not in worst[:count]][:count]


def precision_recall_points(scores: Scores, points: int = 200) -> dict[str, list[float]]:
    """Return the micro precision-recall curve at up to `points` thresholds, exact at each.

    Args:
        scores: with the true targets. multi: pairs are ranked by logit; single: by softmax probability, because
            logits of different documents share no scale.
        points: the thresholds are quantiles of the scores of the true pairs, so recall rises evenly.

    Returns:
        ``recall`` ascending, ``precision`` and ``threshold`` of the same length; empty where nothing is true.
    """
    targets = require_targets(scores)
    true = truth(targets)
    values = activate(scores.logits, "softmax") if targets.task == "single" else scores.logits
    positives = np.sort(values[np.repeat(np.arange(len(targets)), np.diff(true.indptr)), true.indices])
    if len(positives) == 0:
        return {"recall": [], "precision": [], "threshold": []}
    cuts = np.unique(positives[np.linspace(0, len(positives) - 1, points).astype(int)])[::-1]
    predicted = np.zeros(len(cuts), dtype=np.int64)
    for start in range(0, len(values), ROWS):
        block = np.sort(values[start : start + ROWS], axis=None)
        predicted += len(block) - np.searchsorted(block, cuts, side="left")
    hits = len(positives) - np.searchsorted(positives, cuts, side="left")
    return {
        "recall": (hits / len(positives)).tolist(),
        "precision": (hits / predicted).tolist(),
        "threshold": cuts.astype(float).tolist(),
    }
