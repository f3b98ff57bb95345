"""Linear classifiers over thousands of labels, solved together: squared-hinge SVMs on working sets, and ridge.

A label's SVM depends only on its support vectors: of EURLEX57K's 45,000 training documents the negatives that count
number about 200 for a label with 3 documents and 6,300 for the most frequent one. So each label is solved on its
positives and its nearest negatives, all documents are then scored for many labels at once, the negatives that turn
out to matter join, and the label is solved again from where it stood, until none is left.

Dimension letters: N documents, V words, L labels, K regression targets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse
from scipy.sparse import csc_array, csr_array

from tinyhat.types import FloatArray, IntArray

BLOCK = 64  # labels scored at once: N x 64 floats are 12 MB at 45,000 documents; fixed, so that bits do not vary
NEGATIVES = 500  # nearest negatives a label begins with, and takes in per round, beside two for every positive
SLACK = 0.05  # a negative outside the working set counts when it is this far inside the margin
TOLERANCE = 0.02  # gradient norm at which a label is solved, as a share of its positives' gradient at zero
PRUNE = 0.01  # weights below this are dropped (DiSMEC, Babbar & Schölkopf 2017)
ROUNDS = 20
NEWTON_STEPS = 50
CG_STEPS = 50


def fit_svm(
    rows_NV: csr_array,
    labels_NL: csc_array,
    strength: float,
    weights_N: FloatArray,
    progress: Callable[[int], None] | None = None,
) -> tuple[csr_array, FloatArray]:
    """Fit one squared-hinge SVM per label: the optimum of scikit-learn's one-vs-rest ``LinearSVC(C=strength)``.

    Minimises ``|w|^2 / 2 + C * sum_i s_i * max(0, 1 - y_i * f_i)^2`` over w, the last entry of which is the bias of a
    constant feature, as liblinear does (Fan et al. 2008).

    Args:
        rows_NV: float32 documents.
        labels_NL: who has which label; only the places of the entries are read.
        strength: C, the inverse of the regularisation.
        weights_N: s, the document weights.
        progress: told the number of labels done.

    Returns:
        The weights, float32 [V, L], without those below PRUNE in size, and the biases, float32 [L]; a label without
        documents has zeros.
    """
    ones = np.ones((rows_NV.shape[0], 1), dtype=np.float32)
    rows = sparse.hstack([rows_NV, csr_array(ones)], format="csr")
    counts = np.diff(labels_NL.indptr)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    blocks = -(-len(order) // BLOCK)
    # every blocks-th label by frequency: each block holds some of the slow, frequent ones
    parts = [order[i::blocks] for i in range(blocks)]

    def solve(part: IntArray) -> tuple[csc_array, FloatArray]:
        w = _fit_block(rows, labels_NL[:, part], strength, weights_N)
        bias = w[-1].copy()
        w = w[:-1]
        w[np.abs(w) < PRUNE] = 0
        return csc_array(w), bias

    weights, bias = [], np.zeros(labels_NL.shape[1], dtype=np.float32)
    with ThreadPoolExecutor(_cores()) as pool:
        for part, (part_weights, part_bias) in zip(parts, pool.map(solve, parts), strict=True):
            weights.append(part_weights)
            bias[part] = part_bias
            if progress:
                progress(len(part))
    empty = np.flatnonzero(counts == 0)
    weights.append(csc_array((rows_NV.shape[1], len(empty)), dtype=np.float32))
    place = np.argsort(np.concatenate([*parts, empty]))
    return csr_array(sparse.hstack(weights, format="csc")[:, place]), bias


def fit_ridge(
    rows_NV: csr_array, values_NK: FloatArray, strength: float, weights_N: FloatArray
) -> tuple[csr_array, FloatArray]:
    """Fit ridge regression with a free intercept: the optimum of scikit-learn's ``Ridge(alpha=strength)``.

    Standardising the targets first would give the same function: the weights scale with the target.

    Returns:
        The weights, float32 [V, K], and the intercepts, float32 [K].
    """
    rows, s = rows_NV.astype(np.float64), weights_N.astype(np.float64)
    total = s.sum()
    mean = (rows.T @ s) / total
    y_mean = (s @ values_NK) / total

    def hessian(p: np.ndarray) -> np.ndarray:
        return strength * p + rows.T @ (s * (rows @ p)) - total * (mean @ p) * mean

    weights = []
    for k in range(values_NK.shape[1]):
        centred = s * (values_NK[:, k] - y_mean[k])
        weights.append(_conjugate_gradient(hessian, rows.T @ centred, 1e-6, 1000))
    w = np.stack(weights, axis=1)
    return csr_array(w.astype(np.float32)), (y_mean - mean @ w).astype(np.float32)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fit_block(rows: csr_array, labels: csc_array, strength: float, weights_N: FloatArray) -> FloatArray:
    """Return float32 [V + 1, labels of the block]: working sets, grown until no negative outside them matters."""
    positives: list[IntArray] = np.split(labels.indices.astype(np.int64), labels.indptr[1:-1])
    ones = csc_array((np.ones(labels.nnz, dtype=np.float32), labels.indices, labels.indptr), shape=labels.shape)
    # nearness to the sum of a label's documents chooses the first negatives
    scores = rows @ (rows.T @ ones).toarray()
    working = [np.concatenate([p, _best_outside(scores[:, i], p, _batch(p), -np.inf)]) for i, p in enumerate(positives)]
    w = np.zeros((rows.shape[1], len(positives)), dtype=np.float32)
    live = list(range(len(positives)))
    for _ in range(ROUNDS):
        for i in live:
            signs = np.full(len(working[i]), -1, dtype=np.float32)
            signs[: len(positives[i])] = 1
            w[:, i] = _newton(rows[working[i]], signs, weights_N[working[i]], w[:, i].copy(), strength)
        scores = rows @ np.ascontiguousarray(w[:, live])
        grown = []
        for column, i in enumerate(live):
            more = _best_outside(scores[:, column], working[i], _batch(positives[i]), SLACK - 1)
            if len(more):
                working[i] = np.concatenate([working[i], more])
                grown.append(i)
        live = grown
        if not live:
            break
    return w


def _batch(positives: IntArray) -> int:
    return NEGATIVES + 2 * len(positives)


def _best_outside(scores_N: FloatArray, inside: IntArray, most: int, above: float) -> IntArray:
    """Return at most `most` documents not `inside` that score over `above`, the highest."""
    masked = scores_N.copy()
    masked[inside] = -np.inf
    found = np.flatnonzero(masked > above)
    if len(found) > most:
        found = found[np.argpartition(-masked[found], most - 1)[:most]]
    return found


def _newton(rows: csr_array, y: FloatArray, s: FloatArray, w: FloatArray, strength: float) -> FloatArray:
    """Minimise one label's squared-hinge objective from `w` by Newton steps on the active documents.

    Source: Keerthi & DeCoste 2005, a finite Newton method with conjugate gradients and an exact line search.
    """
    columns = rows.T
    c = 2 * strength * s
    start = columns @ (c * np.maximum(y, 0))
    goal = TOLERANCE * float(np.sqrt(_dot(start, start)))
    f = rows @ w
    for _ in range(NEWTON_STEPS):
        gradient = w - columns @ (c * y * np.maximum(0, 1 - y * f))
        if np.sqrt(_dot(gradient, gradient)) <= goal:
            break
        active = np.flatnonzero(y * f < 1)
        w, f = _step(rows, rows[active], c[active], gradient, w, f, y, c)
    return w


def _step(
    rows: csr_array,
    active: csr_array,
    c_active: FloatArray,
    gradient: FloatArray,
    w: FloatArray,
    f: FloatArray,
    y: FloatArray,
    c: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Return w and its scores after one Newton step with the exact best length."""
    transposed = active.T

    def hessian(p: FloatArray) -> FloatArray:
        return p + transposed @ (c_active * (active @ p))

    d: FloatArray = _conjugate_gradient(hessian, -gradient, 0.1, CG_STEPS)
    fd: FloatArray = rows @ d
    wd, dd, t = _dot(w, d), _dot(d, d), 1.0
    for _ in range(10):  # the objective along d is piecewise quadratic and convex: Newton in one variable
        gap = 1 - y * (f + t * fd)
        hit = gap > 0
        slope = wd + t * dd - float((c * y * fd * gap)[hit].sum())
        change = slope / (dd + float((c * fd * fd)[hit].sum()))
        t -= change
        if abs(change) < 1e-3:
            break
    length = np.float32(t)
    return w + length * d, f + length * fd


def _conjugate_gradient(
    hessian: Callable[[np.ndarray], np.ndarray], b: np.ndarray, tolerance: float, steps: int
) -> np.ndarray:
    """Solve ``hessian(x) = b`` from zero until the residual is `tolerance` of b."""
    x, residual = np.zeros_like(b), b.copy()
    p, rr = residual.copy(), _dot(residual, residual)
    goal = tolerance * tolerance * rr
    for _ in range(steps):
        if rr <= goal:
            break
        hp = hessian(p)
        a = rr / _dot(p, hp)
        x += a * p
        residual -= a * hp
        rr, before = _dot(residual, residual), rr
        p = residual + (rr / before) * p
    return x


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    # not BLAS: several threads calling it at once would make the order of its sums a matter of chance
    return float(np.einsum("i,i->", a, b))
