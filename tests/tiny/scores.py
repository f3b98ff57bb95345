"""Small synthetic scores for tests of tune, evaluate and report."""

from __future__ import annotations

import numpy as np

from tinyhat.types import Scores, Targets, Task


def tiny_scores(task: Task = "multi", documents: int = 60, labels: int = 8, seed: int = 0) -> Scores:
    """Scores that know something: true labels score 2 higher, and labels differ in frequency and in level."""
    rng = np.random.default_rng(seed)
    ids = [f"d{i}" for i in range(documents)]
    if task == "regression":
        values = rng.normal(size=(documents, labels)).astype(np.float32)
        return Scores(ids, (values + rng.normal(size=values.shape)).astype(np.float32), Targets(task, labels, values))
    if task == "single":
        classes = rng.integers(labels, size=documents)
        logits = rng.normal(size=(documents, labels))
        logits[np.arange(documents), classes] += 2
        return Scores(ids, logits.astype(np.float32), Targets(task, labels, classes))
    hot = rng.random((documents, labels)) < 1 / (1.5 + np.arange(labels))
    logits = rng.normal(size=hot.shape) + 2 * hot - 0.3 * np.arange(labels)
    return Scores(ids, logits.astype(np.float32), sparse_targets(hot))


def sparse_targets(hot: np.ndarray) -> Targets:
    """Multi-label targets from a bool matrix [N, L]."""
    indptr = np.concatenate([[0], np.cumsum(hot.sum(axis=1))]).astype(np.int64)
    return Targets("multi", hot.shape[1], np.nonzero(hot)[1].astype(np.int64), indptr)
