"""All metrics of one split from its saved scores, as one JSON-able dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyhat.config import EvaluateConfig
from tinyhat.evaluate.bands import band_metrics
from tinyhat.evaluate.bootstrap import bootstrap, interval
from tinyhat.evaluate.ranking import ranking_values, reciprocal_ranks
from tinyhat.evaluate.single import confusion, probability_metrics
from tinyhat.evaluate.statistic import Statistic, label_statistic, regression_statistic, regression_values
from tinyhat.tune.decided import ROWS, Csr, label_counts, require_targets, truth
from tinyhat.types import FloatArray, IntArray, Scores

MAIN_METRIC = {"multi": "micro_f1", "single": "accuracy", "regression": "pearson"}  # what runs are ranked by
CORRELATION, ERROR = (-1.0, 1.0), (0.0, np.inf)
BOUNDS = {  # of the metrics that are not between 0 and 1
    "pearson": CORRELATION, "spearman": CORRELATION, "mae": ERROR, "rmse": ERROR, "log_loss": ERROR,
    "r2": (-np.inf, 1.0),
}  # fmt: skip


def evaluate_scores(
    scores: Scores,
    decided: Csr | None,
    train_counts: IntArray | None,
    config: EvaluateConfig,
    seed: int,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure one split.

    Args:
        scores: float32 [N, L] logits with their true targets.
        decided: bool CSR [N, L], what the rule chose; None for regression.
        train_counts: int64 [L], training documents per label, behind the bands; None: no bands.
        config: how many bootstrap resamples, and which labels are frequent.
        seed: of the bootstrap.
        names: the L label or K target names used in `confusion` and `per_target`; None: their column numbers.

    Returns:
        Metrics as top-level floats. multi and single: {micro,macro,weighted,samples}_{f1,precision,recall},
        macro_*_present, exact_match, hamming_loss, {precision,recall,rp,ndcg}_at_{1,3,5,10}, mrr, log_loss.
        single also: accuracy, top_{3,5,10}_accuracy, calibration_error. regression: pearson, spearman, mae, rmse, r2
        (means over the targets). Beside them `documents` and `labels` (ints), `intervals` {metric: [low, high]}, the
        95% percentile bootstrap over documents, and nested `bands`, `confusion` (single), `per_target` (regression).
        There is no NaN: what is undefined is left out.

    Raises:
        UserError: no true labels, no documents, or logits that are NaN.
    """
    targets = require_targets(scores)
    names = [str(j) for j in range(targets.width)] if names is None else names
    out: dict[str, Any] = {"documents": len(targets), "labels": targets.width}
    statistic = score_statistic(scores, decided)
    figures = statistic(np.ones((1, len(targets)), dtype=np.float32))
    out |= {name: float(value[0]) for name, value in figures.items() if np.isfinite(value[0])}
    samples = bootstrap(statistic, len(targets), config.bootstrap, seed)
    found = {
        name: interval(values, out[name], BOUNDS.get(name, (0.0, 1.0)))
        for name, values in samples.items()
        if name in out
    }
    out["intervals"] = {name: pair for name, pair in found.items() if pair is not None}
    if targets.task == "regression":
        per_target = regression_values(targets.dense(), scores.logits)(np.ones((1, len(targets)), dtype=np.float32))
        out["per_target"] = {
            name: {metric: float(x[0, j]) for metric, x in per_target.items() if np.isfinite(x[0, j])}
            for j, name in enumerate(names)
        }
        return out
    assert decided is not None, "decisions are needed for labels"
    true = truth(targets)
    if targets.task == "single":
        labels = targets.values.astype(np.int64)
        out |= probability_metrics(scores.logits, labels)
        if (np.diff(decided.indptr) == 1).all():
            out["confusion"] = confusion(labels, decided.indices.astype(np.int64), names)
    else:
        out["log_loss"] = _binary_log_loss(scores.logits, true)
    if train_counts is not None:
        counts = label_counts(true, decided)
        out["bands"] = band_metrics(scores.logits, true, counts, np.asarray(train_counts), config.frequent)
    return out


def score_statistic(scores: Scores, decided: Csr | None) -> Statistic:
    """Return every top-level metric that is a mean, a ratio of counts or a moment, as a function of document weights.

    Args:
        scores: float32 [N, L] logits with their true targets.
        decided: bool CSR [N, L]; None for regression.

    Raises:
        UserError: as `evaluate_scores`.
    """
    targets = require_targets(scores)
    if targets.task == "regression":
        return regression_statistic(targets.dense(), scores.logits)
    if decided is None or decided.shape != scores.logits.shape:
        raise ValueError(f"decisions do not fit logits of shape {scores.logits.shape}")
    true = truth(targets)
    values = ranking_values(scores.logits, true)
    values["mrr"] = reciprocal_ranks(scores.logits, true)
    if targets.task == "single":
        # an empty row is a document whose label is outside the label space: no decision is right for it
        hits = true.multiply(decided).tocsr()
        values["accuracy"] = np.diff(hits.indptr).astype(np.float64)
        values |= {f"top_{k}_accuracy": values[f"recall_at_{k}"] for k in (3, 5, 10)}
    return label_statistic(true, decided, values)


def _binary_log_loss(logits_NL: FloatArray, true: Csr) -> float:
    """Return binary cross-entropy summed over labels, mean over documents (nats): the loss of training."""
    total = 0.0
    for start in range(0, len(logits_NL), ROWS):
        block = logits_NL[start : start + ROWS]
        # log(1 + e^x) without overflow
        total += float((np.maximum(block, 0) + np.log1p(np.exp(-np.abs(block)))).sum(dtype=np.float64))
    rows = np.repeat(np.arange(true.shape[0]), np.diff(true.indptr))
    return (total - float(logits_NL[rows, true.indices].sum(dtype=np.float64))) / len(logits_NL)
