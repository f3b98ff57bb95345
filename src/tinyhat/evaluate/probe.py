"""How much of the answers a linear map finds in fixed features: a cross-validated linear probe.

Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes". The probe is ridge regression
on the answers as numbers (one-hot, multi-hot, or the targets), because its folds and penalties come out of one
eigendecomposition each: forty candidates of thousands of documents take a minute, and nothing has to converge.
N documents, D width of the features, C columns of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tinyhat.errors import UserError
from tinyhat.evaluate.ranking import top_labels
from tinyhat.evaluate.statistic import regression_values
from tinyhat.types import IntArray, Targets, Task

FOLDS = 5
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # times the documents of the fit; features have variance 1
LEAST = 2 * FOLDS

METRIC: dict[Task, str] = {"single": "accuracy", "multi": "r_precision", "regression": "pearson"}
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        folds: the metric on each held-out fold.
        penalty: the ridge penalty it was best with, of `PENALTIES`.
    """

    folds: tuple[float, ...]
    penalty: float

    @property
    def score(self) -> float:
        """The mean over the folds."""
        return float(np.mean(self.folds))

    @property
    def error(self) -> float:
        """The standard error of that mean."""
        return float(np.std(self.folds, ddof=1) / np.sqrt(len(self.folds)))


class Probe:
    """A linear probe of one data set, asked about many sets of features.

    Args:
        targets: of N documents.
        seed: of the folds.
        groups: N group names that never part between folds, or None.

    Attributes:
        fold: int64 [N], the fold each document is held out in.
        metric: accuracy (single); r_precision (multi): the share of a document's R labels among its R best, mean over
            documents that have labels; pearson (regression): mean over targets.

    Raises:
        UserError: fewer documents (or groups) than make folds.
    """

    def __init__(self, targets: Targets, seed: int = 0, groups: Sequence[str] | None = None) -> None:
        count = len(targets)
        units = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
        distinct = int(units.max(initial=-1)) + 1
        if distinct < LEAST:
            raise UserError(
                f"a probe needs {LEAST} documents (or groups) at least and there are {distinct}: give more data"
            )
        order = np.random.default_rng(seed).permutation(distinct)
        self.fold: IntArray = (order % FOLDS)[units]
        self.targets, self.metric = targets, METRIC[targets.task]
        self._answers = _answers(targets)
        self._held = [np.flatnonzero(self.fold == f) for f in range(FOLDS)]

    def __call__(self, features_ND: npt.NDArray[np.float32]) -> Probed:
        """Fit on all folds but one and measure on that one, for each; the penalty is the one with the best mean.

        Args:
            features_ND: float32 [N, D]. They are brought to mean 0 and variance 1 over all documents first.
        """
        x = standardised(features_ND)
        y = self._answers
        gram = [x[rows].T @ x[rows] for rows in self._held]
        cross = [(y[rows].T @ x[rows]).T for rows in self._held]  # answers first: labels are sparse
        sums = [(len(rows), x[rows].sum(axis=0), y[rows].sum(axis=0)) for rows in self._held]
        found = np.empty((len(PENALTIES), FOLDS))
        for f, rows in enumerate(self._held):
            rest = [g for g in range(FOLDS) if g != f]
            n = sum(sums[g][0] for g in rest)
            mean_x, mean_y = (sum(sums[g][i] for g in rest) / n for i in (1, 2))
            # the normal equations of the centred features: the mean's part taken off
            a = sum(gram[g] for g in rest) - n * np.outer(mean_x, mean_x)
            b = sum(cross[g] for g in rest) - n * np.outer(mean_x, mean_y)
            values, vectors = np.linalg.eigh(a)
            turned, answers = (x[rows] - mean_x) @ vectors, vectors.T @ b
            for p, penalty in enumerate(PENALTIES):
                scores = turned @ (answers / (np.maximum(values, 0) + penalty * n)[:, None]) + mean_y
                found[p, f] = self.measure(scores, rows)
        best = int(np.argmax(found.mean(axis=1)))
        return Probed(tuple(found[best].tolist()), PENALTIES[best])

    def measure(self, scores_BC: Array, rows: IntArray) -> float:
        """Return the metric of scores float64 [B, C] for the documents `rows` (int64 [B]); 0 where it is undefined."""
        if self.targets.task == "single":
            return float(np.mean(scores_BC.argmax(axis=1) == self.targets.values[rows]))
        if self.targets.task == "regression":
            ones = np.ones((1, len(rows)), np.float32)
            truth = self._answers[rows].astype(np.float32)
            pearson = regression_values(truth, scores_BC.astype(np.float32))(ones)["pearson"]
            return float(np.nan_to_num(pearson).mean())
        truth = self._answers[rows].toarray()
        size = truth.sum(axis=1).astype(int)
        labelled = np.flatnonzero(size)
        if not len(labelled):
            return 0.0
        best = top_labels(scores_BC[labelled].astype(np.float32), int(size.max()))
        hits = np.take_along_axis(truth[labelled], best, axis=1)
        within = np.arange(best.shape[1]) < size[labelled, None]
        return float(((hits * within).sum(axis=1) / size[labelled]).mean())


def _answers(targets: Targets) -> Any:
    """Return float64 [N, C]: the numbers themselves, or labels as a sparse matrix of ones."""
    if targets.task == "regression":
        return np.asarray(targets.values, np.float64)
    if targets.indptr is None:
        rows = np.flatnonzero(targets.values >= 0)
        columns = targets.values[rows]
    else:
        rows, columns = np.repeat(np.arange(len(targets)), np.diff(targets.indptr)), targets.values
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(targets), targets.width))


def standardised(features_ND: npt.NDArray[np.float32]) -> Array:
    """Return features float64 [N, D] with mean 0 and variance 1; a constant column becomes zeros."""
    x = features_ND.astype(np.float64)
    x -= x.mean(axis=0)
    spread = x.std(axis=0)
    x /= np.where(spread > 0, spread, 1.0)
    return x


def paired_difference(one: Probed, other: Probed) -> tuple[float, float]:
    """Return the mean over folds of `one` minus `other`, and its standard error (the folds are the same)."""
    gaps = np.subtract(one.folds, other.folds)
    return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
