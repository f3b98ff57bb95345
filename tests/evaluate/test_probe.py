"""The linear probe against scikit-learn, fold by fold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from tinyhat.errors import UserError
from tinyhat.evaluate.probe import FOLDS, PENALTIES, Probe, paired_difference, standardised
from tinyhat.types import Targets

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(120, 9)).astype(np.float32) * np.linspace(0.1, 50, 9, dtype=np.float32)
TRUE_MAP = RANDOM.normal(size=(9, 4)) / np.linspace(0.1, 50, 9)[:, None]
SCORES = FEATURES @ TRUE_MAP + RANDOM.normal(size=(120, 4))


def targets_of(task: str) -> Targets:
    if task == "single":
        return Targets("single", 4, SCORES.argmax(axis=1))
    if task == "regression":
        return Targets("regression", 4, (1000 + 5 * SCORES).astype(np.float32))
    chosen = SCORES > 0.8
    return Targets("multi", 4, np.nonzero(chosen)[1], np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]))


def by_scikit_learn(task: str, probe: Probe) -> list[list[float]]:
    """The metric of every penalty (rows) and fold (columns)."""
    x, y = standardised(FEATURES), targets_of(task).dense().astype(np.float64)
    table = []
    for penalty in PENALTIES:
        folds = []
        for fold in range(FOLDS):
            fit, held = np.flatnonzero(probe.fold != fold), np.flatnonzero(probe.fold == fold)
            found = Ridge(alpha=penalty * len(fit)).fit(x[fit], y[fit]).predict(x[held])
            if task == "single":
                folds.append(np.mean(found.argmax(1) == y[held].argmax(1)))
            elif task == "regression":
                folds.append(np.mean([np.corrcoef(found[:, j], y[held, j])[0, 1] for j in range(4)]))
            else:
                shares = []
                for scores, truth in zip(found, y[held], strict=True):
                    r = int(truth.sum())
                    if r:
                        shares.append(truth[np.argsort(-scores, kind="stable")[:r]].sum() / r)
                folds.append(np.mean(shares))
        table.append(folds)
    return table


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_equals_scikit_learns_ridge_fold_by_fold(task):
    probe = Probe(targets_of(task), seed=3)
    found = probe(FEATURES)
    table = np.array(by_scikit_learn(task, probe))
    best = int(table.mean(axis=1).argmax())
    assert found.penalty == PENALTIES[best]
    assert found.folds == pytest.approx(table[best], abs=1e-5)
    assert found.score == pytest.approx(table[best].mean(), abs=1e-5)
    assert found.error == pytest.approx(table[best].std(ddof=1) / FOLDS**0.5, abs=1e-5)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_tells_knowing_features_from_noise(task):
    probe = Probe(targets_of(task))
    noise = np.random.default_rng(1).normal(size=FEATURES.shape).astype(np.float32)
    gap, error = paired_difference(probe(FEATURES), probe(noise))
    assert gap > 3 * error > 0


@given(st.lists(st.integers(0, 14), min_size=40, max_size=80), st.integers(0, 5))
def test_groups_never_part_and_folds_cover_everything(groups, seed):
    names = [f"g{g}" for g in groups]
    targets = Targets("single", 2, np.arange(len(names)) % 2)
    if len(set(names)) < 10:
        with pytest.raises(UserError, match="10 documents"):
            Probe(targets, seed, names)
        return
    fold = Probe(targets, seed, names).fold
    assert set(fold) == set(range(FOLDS))
    for name in set(names):
        assert len({f for f, own in zip(fold, names, strict=True) if own == name}) == 1


def test_constant_features_and_constant_answers_are_no_trouble():
    probe = Probe(Targets("regression", 1, np.ones((20, 1), np.float32)))
    assert probe(np.zeros((20, 3), np.float32)).score == 0.0
    with pytest.raises(UserError, match="give more data"):
        Probe(Targets("single", 2, np.zeros(5, np.int64)))
