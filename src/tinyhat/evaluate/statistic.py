"""Metrics as functions of document weights: with ones they are the figures, with resampling counts their bootstrap.

One definition serves the number, its interval and the paired comparison. Letters: N documents, L labels, K regression
targets, R weightings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tinyhat.evaluate.ranking import Values
from tinyhat.tune.decided import Csr
from tinyhat.types import FloatArray

Array = npt.NDArray[np.float64]
Statistic = Callable[[FloatArray], dict[str, Array]]
"""Float32 weights [R, N] to metric name and float64 [R]; NaN where a metric is undefined."""


def label_statistic(true: Csr, decided: Csr, values: Values) -> Statistic:
    """Return the F1 family, exact_match, hamming_loss, and the weighted means of `values`, as a Statistic.

    Args:
        true: bool CSR [N, L].
        decided: bool CSR [N, L].
        values: further metrics with one number per document (ranking).

    Averages, as scikit-learn's with zero_division=0: micro over all document-label pairs; macro over all L labels;
    ``macro_*_present`` over the labels with a true document; weighted by true documents; samples over documents.
    """
    hits = true.multiply(decided).tocsr()
    size, given, right = (np.diff(m.indptr).astype(np.float64) for m in (true, decided, hits))
    by_label = [m.T.tocsr().astype(np.float32) for m in (true, decided, hits)]
    width = true.shape[1]
    columns = dict(values)
    columns |= {f"samples_{name}": x for name, x in _prf(size, given, right).items()}
    columns["exact_match"] = ((size == right) & (given == right)).astype(np.float64)
    columns["hamming_loss"] = (size + given - 2 * right) / width

    def statistic(weights: FloatArray) -> dict[str, Array]:
        total = weights.sum(axis=1, dtype=np.float64)
        out = {name: weights @ column / total for name, column in columns.items()}
        micro = _prf(weights @ size, weights @ given, weights @ right)
        out |= {f"micro_{name}": x for name, x in micro.items()}
        positives, predicted, hit = ((m @ weights.T).astype(np.float64) for m in by_label)  # [L, R]
        present = positives > 0
        for name, x in _prf(positives, predicted, hit).items():
            out[f"macro_{name}"] = x.mean(axis=0)
            out[f"macro_{name}_present"] = _ratio((x * present).sum(axis=0), present.sum(axis=0))
            out[f"weighted_{name}"] = _ratio((x * positives).sum(axis=0), positives.sum(axis=0))
        return out

    return statistic


def regression_values(true_NK: FloatArray, found_NK: FloatArray) -> Callable[[FloatArray], dict[str, Array]]:
    """Return a function from float32 weights [R, N] to pearson, spearman, mae, rmse and r2, each float64 [R, K].

    NaN where undefined: correlations and r2 of a constant target, correlations of a constant prediction. r2 is 1 minus
    the squared error over the target's variance, as scikit-learn's. Spearman is Pearson's of the mean ranks; under a
    resample the ranks stay those of the whole split, so that 1,000 resamples need no sorting.
    """
    from scipy.stats import rankdata

    y, x = (np.asarray(a, dtype=np.float64) for a in (true_NK, found_NK))
    ranks = [rankdata(a, axis=0) for a in (y, x)]
    error = y - x
    # centred once: second moments of large numbers would lose the digits that correlations are made of
    y, x, yr, xr = (a - a.mean(axis=0) for a in (y, x, *ranks))

    def metrics(weights: FloatArray) -> dict[str, Array]:
        w = weights / weights.sum(axis=1, dtype=np.float64, keepdims=True)
        squared = w @ error**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "pearson": _correlation(w, y, x),
                "spearman": _correlation(w, yr, xr),
                "mae": w @ np.abs(error),
                "rmse": np.sqrt(squared),
                "r2": 1 - squared / _variance(w, y),
            }

    return metrics


def regression_statistic(true_NK: FloatArray, found_NK: FloatArray) -> Statistic:
    """Return the means of `regression_values` over the K targets as a Statistic; undefined if it is for one target."""
    values = regression_values(true_NK, found_NK)
    return lambda weights: {name: x.mean(axis=1) for name, x in values(weights).items()}


def _variance(w: Array, x: Array) -> Array:
    """Return the weighted variance [R, K], exactly 0 only where it vanishes; rounding below 1e-12 of x^2 is 0, too."""
    mean, square = w @ x, w @ x**2
    variance = square - mean**2
    return np.where(variance > 1e-12 * np.maximum(square, 1e-300), variance, 0.0)


def _correlation(w: Array, x: Array, y: Array) -> Array:
    spread = np.sqrt(_variance(w, x) * _variance(w, y))
    return np.where(spread > 0, (w @ (x * y) - (w @ x) * (w @ y)) / spread, np.nan)


def _prf(positives: Array, predicted: Array, hits: Array) -> dict[str, Array]:
    """Return precision, recall and F1 from counts of any shape; 0 where the denominator is 0."""
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, positives),
        "f1": _ratio(2 * hits, positives + predicted),
    }


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros(np.shape(top)), where=np.asarray(bottom) > 0)
