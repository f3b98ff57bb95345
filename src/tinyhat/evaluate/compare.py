"""Is one better than the other? Paired bootstrap over the same documents, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyhat.errors import UserError
from tinyhat.evaluate.bootstrap import bootstrap, interval
from tinyhat.evaluate.metrics import score_statistic
from tinyhat.tune.decided import Csr
from tinyhat.types import Scores


def compare_scores(
    first: Scores, first_decided: Csr | None, second: Scores, second_decided: Csr | None, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Compare two sets of scores of the same documents by the paired bootstrap.

    Both are measured on the same resamples of the documents, so that hard documents weigh on both alike (Koehn 2004,
    "Statistical Significance Tests for Machine Translation Evaluation"; Berg-Kirkpatrick et al. 2012).

    Args:
        first: scores of one model.
        first_decided: its decisions, bool CSR [N, L]; None for regression.
        second: scores of the other model, with the same ids in the same order.
        second_decided: its decisions.
        resamples: at least 1; the smallest p is 2 / (resamples + 1).
        seed: of the bootstrap.

    Returns:
        Metric to first, second, difference (second minus first), interval (95% of the difference) and p (two-sided:
        twice the smaller share of resamples on either side of no difference).

    Raises:
        UserError: the documents differ.
    """
    if list(first.ids) != list(second.ids):
        raise UserError(
            f"the two sets of scores are not of the same documents in the same order ({len(first.ids)} and "
            f"{len(second.ids)} ids): score one file with both models"
        )
    statistics = [score_statistic(first, first_decided), score_statistic(second, second_decided)]
    ones = np.ones((1, len(first.ids)), dtype=np.float32)
    (a, b) = (statistic(ones) for statistic in statistics)
    before, after = (bootstrap(statistic, len(first.ids), resamples, seed) for statistic in statistics)
    out: dict[str, dict[str, Any]] = {}
    for name in a:
        if name not in b or not np.isfinite([a[name][0], b[name][0]]).all():
            continue
        change = after[name] - before[name]
        change = change[np.isfinite(change)]
        sides = [np.count_nonzero(change <= 0), np.count_nonzero(change >= 0)]
        out[name] = {
            "first": float(a[name][0]),
            "second": float(b[name][0]),
            "difference": float(b[name][0] - a[name][0]),
            "interval": interval(change, float(b[name][0] - a[name][0]), (-np.inf, np.inf)),
            "p": min(1.0, 2.0 * (int(min(sides)) + 1) / (len(change) + 1)),
        }
    return out


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean, std (sample, n - 1; 0 for one run) and runs of every metric that all `results` have.

    Args:
        results: what `evaluate_scores` returned, one per seed.
    """
    if not results:
        raise UserError("there are no runs to average: name at least one run folder")
    out: dict[str, dict[str, float]] = {}
    for name, value in results[0].items():
        values = [result.get(name) for result in results]
        if isinstance(value, float) and all(isinstance(v, float) for v in values):
            numbers = np.array(values, dtype=np.float64)
            std = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
            out[name] = {"mean": float(numbers.mean()), "std": std, "runs": len(numbers)}
    return out
