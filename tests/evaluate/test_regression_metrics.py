import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from tiny.scores import tiny_scores
from tinyhat.config import EvaluateConfig
from tinyhat.evaluate.metrics import evaluate_scores
from tinyhat.types import Scores, Targets

PLAIN = EvaluateConfig(bootstrap=0)


def scored(y, x):
    y, x = (np.asarray(a, np.float32).reshape(len(y), -1) for a in (y, x))
    return Scores([str(i) for i in range(len(y))], x, Targets("regression", y.shape[1], y))


def test_figures_are_those_of_scipy_and_sklearn():
    scores = tiny_scores("regression", documents=120, labels=3)
    y, x = scores.targets.values.round(1), scores.logits.round(1)  # rounded: ties for Spearman
    out = evaluate_scores(scored(y, x), None, None, PLAIN, 0, names=["a", "b", "c"])
    y, x = y.astype(np.float64), x.astype(np.float64)
    for j, name in enumerate("abc"):
        own = out["per_target"][name]
        assert own["pearson"] == pytest.approx(stats.pearsonr(y[:, j], x[:, j]).statistic)
        assert own["spearman"] == pytest.approx(stats.spearmanr(y[:, j], x[:, j]).statistic)
        assert own["mae"] == pytest.approx(sk.mean_absolute_error(y[:, j], x[:, j]))
        assert own["rmse"] == pytest.approx(sk.root_mean_squared_error(y[:, j], x[:, j]))
        assert own["r2"] == pytest.approx(sk.r2_score(y[:, j], x[:, j]))
    assert out["r2"] == pytest.approx(sk.r2_score(y, x))
    assert out["rmse"] == pytest.approx(sk.root_mean_squared_error(y, x))


@given(st.floats(0.01, 100), st.floats(-1000, 1000))
def test_correlations_ignore_scale_and_place(scale, shift):
    rng = np.random.default_rng(0)
    y = rng.normal(size=40)
    x = y + rng.normal(size=40)
    before = evaluate_scores(scored(y, x), None, None, PLAIN, 0)
    after = evaluate_scores(scored(y, x * scale + shift), None, None, PLAIN, 0)
    assert after["pearson"] == pytest.approx(before["pearson"], abs=2e-3)  # float32 at 1000 keeps four decimals


def test_large_numbers_keep_their_digits():
    year = np.array([1900, 1950, 2000, 2020], dtype=np.float64) + 1e6
    found = year + np.array([1, -1, 1, -1])
    assert evaluate_scores(scored(year, found), None, None, PLAIN, 0)["r2"] == pytest.approx(sk.r2_score(year, found))


@pytest.mark.parametrize("constant", [0.1, 0.0, 1e6])
def test_a_constant_target_leaves_out_what_is_undefined(constant):
    scores = scored(np.full(9, constant), np.arange(9) + constant)
    out = evaluate_scores(scores, None, None, EvaluateConfig(bootstrap=50), 0, names=["t"])
    assert "r2" not in out
    assert "pearson" not in out["per_target"]["t"]
    assert out["mae"] == pytest.approx(4)
    json.dumps(out, allow_nan=False)


def test_a_constant_prediction_has_no_correlation_but_an_r2():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = evaluate_scores(scored(np.arange(6), np.full(6, 2.5)), None, None, PLAIN, 0)
    assert "pearson" not in out
    assert "spearman" not in out
    assert out["r2"] == pytest.approx(0.0)


def test_intervals_hold_the_figures():
    out = evaluate_scores(tiny_scores("regression", 200, 2), None, None, EvaluateConfig(bootstrap=300), 0)
    assert set(out["intervals"]) == {"pearson", "spearman", "mae", "rmse", "r2"}
    for name, (low, high) in out["intervals"].items():
        assert low < out[name] < high
