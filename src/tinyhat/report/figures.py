"""Which plots a run gets, from its log, its metrics and its scores; plots.py draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyhat.data.labels import LabelSpace
from tinyhat.evaluate.per_label import LabelRow, precision_recall_points
from tinyhat.report import plots
from tinyhat.report.mistakes import top_probability
from tinyhat.report.numbers import readable
from tinyhat.types import Scores

SHOWN_TARGETS = 6


def run_plots(log: list[dict[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Draw what log.jsonl and metrics.json know: learning curves and document lengths."""
    drawn: dict[str, Any] = {"curves": []}

    def column(key: str) -> tuple[list[float], list[float]]:
        kept = [line for line in log if isinstance(line.get(key), (int, float)) and np.isfinite(line[key])]
        return [line["step"] for line in kept], [line[key] for line in kept]

    evaluations = [(line["step"], line["evaluation"]) for line in log if isinstance(line.get("evaluation"), dict)]
    dev_loss = [(step, e["loss"]) for step, e in evaluations if e.get("loss") is not None]
    scored = [(step, e["value"], e.get("metric", "score")) for step, e in evaluations if e.get("value") is not None]
    loss = column("loss")
    if loss[0]:
        dev = ([s for s, _ in dev_loss], [v for _, v in dev_loss]) if dev_loss else None
        drawn["curves"].append(plots.curve("loss", "training loss", *loss, dev=dev))
    if scored:
        points = ([s for s, *_ in scored], [v for _, v, _ in scored])
        drawn["curves"].append(plots.curve("dev", f"{readable(scored[-1][2])} on dev", [], [], dev=points))
    steps, norms = column("gradient_norm")
    if steps:
        drawn["curves"].append(plots.curve("gradient-norm", "gradient norm, before clipping", steps, norms))
    steps, rates = column("rate")
    if steps and max(rates) > 0:
        power = int(np.floor(np.log10(max(rates))))
        scaled = [rate / 10.0**power for rate in rates]
        drawn["curves"].append(
            plots.curve("rate", f"learning rate of the body, times 1e{power}", steps, scaled, noisy=False)
        )
    histogram = (metrics.get("reading") or {}).get("histogram") or {}
    if histogram.get("counts"):
        most = metrics["reading"].get("max_tokens")
        drawn["lengths"] = plots.lengths(histogram["edges"], histogram["counts"], most)
    return drawn


def label_plots(
    scores: Scores,
    labels: LabelSpace,
    table: list[LabelRow],
    matrix: list[list[int]] | None,
    metrics: Mapping[str, Any],
    frequent: int,
) -> dict[str, str]:
    """Draw what the decisions show: precision-recall (multi), reliability and confusion (single), F1 over frequency.

    Args:
        scores: logits [N, L] with targets.
        labels: the L labels.
        table: one row per label.
        matrix: documents per true (row) and decided (column) label [L, L], or None for too many labels.
        metrics: metrics.json, for the operating points.
        frequent: training documents from which a label is called frequent.
    """
    assert scores.targets is not None
    drawn = {}
    if scores.targets.task == "multi":
        points = precision_recall_points(scores)
        if points["recall"]:
            ends = _point(metrics), _point(metrics.get("baseline") or {})
            drawn["pr"] = plots.precision_recall(points["precision"], points["recall"], *ends)
    else:
        best, confidence = top_probability(scores.logits)
        right = best == scores.targets.values
        bins = np.minimum((confidence * 10).astype(int), 9)
        counts = np.bincount(bins, minlength=10)
        kept = counts > 0
        mean, share = (np.bincount(bins, weights=w, minlength=10)[kept] / counts[kept] for w in (confidence, right))
        drawn["reliability"] = plots.reliability(mean, share, counts[kept])
        if matrix is not None and len(labels) > 1:
            drawn["confusion"] = plots.confusion(np.array(matrix), labels.names)
    known = [row for row in table if row.positives and row.train_documents]
    if len(known) >= 10:
        documents = [row.train_documents or 0 for row in known]
        drawn["frequency"] = plots.frequency(documents, [row.f1 for row in known], frequent)
    return drawn


def _point(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    precision, recall = metrics.get("micro_precision"), metrics.get("micro_recall")
    return None if precision is None or recall is None else (float(precision), float(recall))


def regression_plots(scores: Scores, labels: LabelSpace) -> dict[str, list[str]]:
    """Draw predicted over true and the residuals of the first targets."""
    assert scores.targets is not None
    true = scores.targets.dense()
    drawn = []
    for k, name in enumerate(labels.names[:SHOWN_TARGETS]):
        drawn.append(plots.scatter(f"scatter-{k}", name, true[:, k], scores.logits[:, k]))
        drawn.append(plots.residuals(f"residuals-{k}", name, true[:, k], scores.logits[:, k]))
    return {"targets": drawn}
