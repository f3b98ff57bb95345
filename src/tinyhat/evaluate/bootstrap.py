"""The bootstrap over documents: percentile intervals of any Statistic (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyhat.evaluate.statistic import Array, Statistic

BLOCK = 100  # resamples at a time: 100 x 4,271 float64 is 3.4 MB


def bootstrap(statistic: Statistic, documents: int, resamples: int, seed: int) -> dict[str, Array]:
    """Return every metric under `resamples` resamplings of `documents` with replacement, float64 [resamples].

    The resamplings depend on `documents` and `seed` only, so two statistics of the same documents see the same ones:
    their differences are paired.
    """
    rng = np.random.default_rng(seed)
    parts: list[dict[str, Array]] = []
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        drawn = rng.integers(documents, size=(rows, documents)) + documents * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * documents).reshape(rows, documents)
        parts.append(statistic(weights.astype(np.float32)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def without_width(metrics: Mapping[str, Any]) -> str | None:
    """Return a sentence for people where a shown interval has no width, which looks surer than it is; else None.

    Where no document of N is wrong, no resample has a wrong one either; up to 3/N of all documents may still be
    (rule of three, Hanley and Lippman-Hand 1983).
    """
    found = [name for name, pair in (metrics.get("intervals") or {}).items() if pair and pair[0] == pair[1]]
    if not found or not metrics.get("documents"):
        return None
    return (
        f"An interval without width ({', '.join(found)}) says only that all {metrics['documents']} documents agree: "
        f"among other documents a share of up to {3 / metrics['documents']:.2g} may still be different."
    )


def interval(samples: Array, figure: float, bounds: tuple[float, float]) -> list[float] | None:
    """Return the 95% interval of `figure` from its resamples: their 2.5th and 97.5th percentile, centred on the figure.

    Centred: shifted so that the resamples' mean is the figure. A resample holds fewer different documents than the
    split and loses rare labels, so that macro-F1 over 4,271 labels falls in every resample, and the plain percentiles
    lie below the figure they belong to. For a mean over documents the shift is nothing.

    Args:
        samples: float64 [resamples]; NaN where a resample leaves the metric undefined.
        figure: the metric on the whole split.
        bounds: the least and the greatest value the metric can have; the interval keeps to them.

    Returns:
        [low, high], or None where no resample has a defined value.
    """
    samples = samples[np.isfinite(samples)]
    if len(samples) == 0:
        return None
    return [float(x) for x in np.clip(figure + np.percentile(samples - samples.mean(), [2.5, 97.5]), *bounds)]
