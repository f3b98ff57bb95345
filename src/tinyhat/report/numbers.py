"""How the report and the model card call a metric, write a value, and set it beside the linear baseline."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAMES = {
    "accuracy": "accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1",
    "macro_f1_present": "macro-F1, labels present",
    "weighted_f1": "weighted F1", "samples_f1": "samples F1", "micro_precision": "micro precision",
    "micro_recall": "micro recall", "macro_precision": "macro precision", "macro_recall": "macro recall",
    "weighted_precision": "weighted precision", "weighted_recall": "weighted recall",
    "samples_precision": "samples precision", "samples_recall": "samples recall", "exact_match": "exact match",
    "hamming_loss": "Hamming loss", "mrr": "MRR", "log_loss": "log loss", "ece": "calibration error (ECE)",
    "calibration_error": "calibration error (ECE)", "pearson": "Pearson r", "spearman": "Spearman ρ",
    "mae": "MAE", "rmse": "RMSE", "r2": "R²",
}  # fmt: skip
_AT_K = {"precision": "P", "recall": "R", "rp": "RP", "ndcg": "nDCG"}
_LOWER_IS_BETTER = {"mae", "rmse", "hamming_loss", "log_loss", "ece", "calibration_error"}
_UNBOUNDED = {"mae", "rmse", "log_loss"}
_NOT_SCORES = {
    "documents", "labels", "steps", "best_step", "samples_per_second", "tokens_per_second", "peak_memory_gb",
    "train_seconds",
}  # fmt: skip
HEADLINE: dict[str, tuple[str, ...]] = {
    "multi": ("micro_f1", "macro_f1", "precision_at_1", "rp_at_5"),
    "single": ("accuracy", "macro_f1", "weighted_f1"),
    "regression": ("pearson", "spearman", "rmse", "r2"),
}

MAIN: dict[str, tuple[str, ...]] = {
    "multi": (
        "micro_f1", "micro_precision", "micro_recall", "macro_f1", "macro_f1_present", "weighted_f1", "samples_f1",
        "exact_match",
    ),
    "single": (
        "accuracy", "top_3_accuracy", "macro_f1", "macro_precision", "macro_recall", "weighted_f1", "log_loss",
        "calibration_error",
    ),
    "regression": ("pearson", "spearman", "r2", "mae", "rmse"),
}  # fmt: skip
_RANKING = {"multi": ("precision", "recall", "rp", "ndcg")}
_KS = (1, 3, 5, 10)


@dataclass(frozen=True)
class Row:
    """One metric of the model beside the same metric of the linear baseline.

    Attributes:
        metric: key in metrics.json.
        value: the model's.
        interval: 95% interval of `value`, or None.
        base: the baseline's value, or None without a baseline.
        base_interval: 95% interval of `base`, or None.
    """

    metric: str
    value: float
    interval: tuple[float, float] | None = None
    base: float | None = None
    base_interval: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """The metric as people call it."""
        return readable(self.metric)

    @property
    def unit_range(self) -> bool:
        """Whether the metric and its intervals lie between 0 and 1, so that a track from 0 to 1 can show them."""
        shown = [self.value, *(self.interval or ())] + ([] if self.base is None else [self.base])
        return self.metric not in _UNBOUNDED and all(0 <= v <= 1 for v in shown)

    @property
    def gain(self) -> float | None:
        """How much better than the baseline, in the metric's unit: positive is better, also where low is good."""
        if self.base is None:
            return None
        return self.base - self.value if self.metric in _LOWER_IS_BETTER else self.value - self.base

    @property
    def clear(self) -> bool | None:
        """Whether the two 95% intervals do not overlap; None where one is missing."""
        if self.interval is None or self.base_interval is None:
            return None
        return self.interval[1] < self.base_interval[0] or self.base_interval[1] < self.interval[0]


def readable(metric: str) -> str:
    """Return the name of a metrics.json key: ``micro_f1`` is micro-F1, ``ndcg_at_5`` is nDCG@5."""
    if found := re.fullmatch(r"(precision|recall|rp|ndcg)_at_(\d+)", metric):
        return f"{_AT_K[found[1]]}@{found[2]}"
    if found := re.fullmatch(r"top_(\d+)_accuracy", metric):
        return f"top-{found[1]} accuracy"
    return _NAMES.get(metric, metric.replace("_", " "))


def show(value: Any) -> str:
    """Return a number for people: three decimals below 100, fewer above; a dash for what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 10_000 else f"{value:,.0f}"
    return text.replace("-", "−")


def show_interval(interval: Sequence[float] | None) -> str:
    """Return ``[low, high]`` for people, or an empty string."""
    return "" if interval is None else f"[{show(float(interval[0]))}, {show(float(interval[1]))}]"


def show_seconds(seconds: Any) -> str:
    """Return a duration in seconds for people: ``12 s``, ``43 min 12 s``, ``2 h 05 min``; a dash without a number."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds:.3g} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def main_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return the Rows people look for first, for the task of metrics.json; those it lacks are left out."""
    wanted = MAIN.get(str(metrics.get("task", "")), ())
    return [row for metric in wanted if (row := score_row(metrics, metric)) is not None]


def other_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return every other top-level score of metrics.json; sizes and speeds are not scores."""
    task = str(metrics.get("task", ""))
    shown = {*MAIN.get(task, ()), *(row.metric for line in ranking_grid(metrics) for row in line if row)}
    rest = [key for key in metrics if key not in shown and key not in _NOT_SCORES]
    return [row for metric in rest if (row := score_row(metrics, metric)) is not None]


def ranking_grid(metrics: Mapping[str, Any]) -> list[list[Row | None]]:
    """Return Rows of P, R, RP and nDCG (lines) at 1, 3, 5 and 10 (columns); None where a number is missing."""
    kinds = _RANKING.get(str(metrics.get("task", "")), ())
    grid = [[score_row(metrics, f"{kind}_at_{k}") for k in _KS] for kind in kinds]
    return [line for line in grid if any(line)]


def score_row(metrics: Mapping[str, Any], metric: str) -> Row | None:
    """Return the Row of one metric, or None where metrics.json has no such number."""
    value = _number(metrics.get(metric))
    if value is None:
        return None
    base = metrics.get("baseline") or {}
    return Row(metric, value, _interval(metrics, metric), _number(base.get(metric)), _interval(base, metric))


def verdict(metrics: Mapping[str, Any]) -> str:
    """Return one or two sentences: the first headline metric, and how it stands to the linear baseline."""
    task = str(metrics.get("task", ""))
    found = [row for metric in HEADLINE.get(task, ()) if (row := score_row(metrics, metric)) is not None]
    if not found:
        return "metrics.json holds no score for this run."
    row = found[0]
    text = f"{row.name[0].upper()}{row.name[1:]} is {show(row.value)}"
    if row.interval is not None:
        text += f", 95% interval {show_interval(row.interval)}"
    if row.base is None or row.gain is None:
        return text + "."
    text += f". The linear baseline reaches {show(row.base)}"
    if abs(row.gain) < 0.0005:
        return text + ", the same."
    text += f": this model is {show(abs(row.gain))} {'ahead' if row.gain > 0 else 'behind'}"
    ending = {None: ".", True: "; the intervals do not overlap.", False: ", but the intervals overlap."}
    return text + ending[row.clear]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _interval(metrics: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    pair = (metrics.get("intervals") or {}).get(metric)
    if not pair or any(_number(v) is None for v in pair):
        return None
    return float(pair[0]), float(pair[1])
