import numpy as np
import pytest
from sklearn.metrics import f1_score

from tiny.scores import sparse_targets, tiny_scores
from tinyhat.config import EvaluateConfig
from tinyhat.decision import Rule
from tinyhat.errors import UserError
from tinyhat.evaluate.bootstrap import bootstrap, interval, without_width
from tinyhat.evaluate.compare import compare_scores, over_seeds
from tinyhat.evaluate.metrics import evaluate_scores, score_statistic
from tinyhat.tune.decided import decide, truth
from tinyhat.types import Scores

RULE = Rule(kind="global", threshold=0.4)


def resampled(scores, weights):
    """The scores with every document repeated as often as its weight says."""
    rows = np.repeat(np.arange(len(scores.ids)), weights.astype(int))
    return Scores([scores.ids[i] for i in rows], scores.logits[rows], scores.targets.take(rows))


@pytest.mark.parametrize("task", ["single", "multi"])
def test_weights_are_repetitions(task):
    scores = tiny_scores(task, documents=50, labels=10)
    weights = np.random.default_rng(0).integers(0, 4, size=(3, 50)).astype(np.float32)
    figures = score_statistic(scores, decide(RULE, scores.logits))(weights)
    for i in range(3):
        repeated = resampled(scores, weights[i])
        found = decide(RULE, repeated.logits)
        whole = score_statistic(repeated, found)(np.ones((1, len(repeated.ids)), np.float32))
        for name, value in whole.items():
            assert figures[name][i] == pytest.approx(value[0], abs=1e-6), name
        assert figures["macro_f1"][i] == pytest.approx(
            f1_score(truth(repeated.targets), found, average="macro", zero_division=0)
        )


def test_regression_weights_are_repetitions():
    scores = tiny_scores("regression", documents=50, labels=3)
    weights = np.random.default_rng(0).integers(0, 4, size=(2, 50)).astype(np.float32)
    figures = score_statistic(scores, None)(weights)
    repeated = resampled(scores, weights[1])
    whole = score_statistic(repeated, None)(np.ones((1, len(repeated.ids)), np.float32))
    for name in ("pearson", "mae", "rmse", "r2"):
        assert figures[name][1] == pytest.approx(whole[name][0]), name


def test_a_seed_fixes_the_resamples_and_counts_do_not_depend_on_blocks():
    mean = {"x": np.random.default_rng(1).normal(size=40)}

    def statistic(weights):
        return {name: weights @ x / 40 for name, x in mean.items()}

    first = bootstrap(statistic, 40, 250, seed=3)["x"]
    assert len(first) == 250
    np.testing.assert_array_equal(first, bootstrap(statistic, 40, 250, seed=3)["x"])
    assert not np.array_equal(first, bootstrap(statistic, 40, 250, seed=4)["x"])
    assert bootstrap(statistic, 40, 0, seed=3) == {}


def test_the_interval_of_a_mean_is_the_textbook_one():
    x = np.random.default_rng(0).normal(size=500)
    samples = bootstrap(lambda w: {"mean": w @ x / 500}, 500, 4000, seed=0)["mean"]
    low, high = interval(samples, float(x.mean()), (-np.inf, np.inf))
    error = 1.96 * x.std() / np.sqrt(500)
    assert low == pytest.approx(x.mean() - error, abs=0.05 * error)
    assert high == pytest.approx(x.mean() + error, abs=0.05 * error)


def test_an_interval_ignores_undefined_resamples():
    assert interval(np.array([np.nan, np.nan]), 0.5, (0, 1)) is None
    assert interval(np.array([1.0, np.nan, 1.0]), 0.5, (0, 1)) == [0.5, 0.5]
    assert interval(np.array([0.0, 1.0]), 0.9, (0, 1))[1] == 1.0, "no F1 is above 1"


def test_intervals_hold_their_figures_even_for_rare_labels():
    rng = np.random.default_rng(0)
    hot = rng.random((400, 300)) < 0.004  # one or two documents a label: plain percentiles miss macro-F1
    scores = Scores(
        [str(i) for i in range(400)], (rng.normal(size=hot.shape) + 6 * hot - 3).astype(np.float32), sparse_targets(hot)
    )
    found = decide(Rule(kind="global", threshold=0.0), scores.logits)
    out = evaluate_scores(scores, found, None, EvaluateConfig(bootstrap=200), 0)
    assert set(out["intervals"]) == set(score_statistic(scores, found)(np.ones((1, 400), np.float32)))
    for name, (low, high) in out["intervals"].items():
        assert low <= out[name] <= high, name
    plain = np.percentile(bootstrap(score_statistic(scores, found), 400, 200, 0)["macro_f1"], 97.5)
    assert plain < out["macro_f1"], "which is why intervals are centred"


def test_more_documents_make_narrower_intervals():
    def width(documents):
        scores = tiny_scores("single", documents=documents, labels=4)
        out = evaluate_scores(scores, decide(Rule(kind="argmax"), scores.logits), None, EvaluateConfig(), 0)
        low, high = out["intervals"]["accuracy"]
        return high - low

    assert width(1600) == pytest.approx(width(100) / 4, rel=0.35)


def test_comparison_tells_a_better_model_from_an_equal_one():
    scores = tiny_scores("multi", documents=400, labels=6)
    rng = np.random.default_rng(0)
    worse = Scores(
        scores.ids, (scores.logits + 3 * rng.normal(size=scores.logits.shape)).astype(np.float32), scores.targets
    )
    good, bad = decide(RULE, scores.logits), decide(RULE, worse.logits)
    out = compare_scores(worse, bad, scores, good, 200, 0)["micro_f1"]
    assert out["difference"] == pytest.approx(out["second"] - out["first"])
    assert out["interval"][0] > 0
    assert out["p"] == pytest.approx(2 / 201)
    back = compare_scores(scores, good, worse, bad, 200, 0)["micro_f1"]
    assert back["difference"] == -out["difference"]
    assert back["p"] == out["p"]
    same = compare_scores(scores, good, scores, good, 200, 0)
    assert all(x["difference"] == 0 and x["p"] == 1 and x["interval"] == [0, 0] for x in same.values())


def test_comparison_is_paired():
    # two models that differ on one document: unpaired intervals are wide, the paired one is not
    scores = tiny_scores("single", documents=300, labels=3)
    other = scores.logits.copy()
    other[0] = -other[0]
    rule = Rule(kind="argmax")
    second = Scores(scores.ids, other, scores.targets)
    out = compare_scores(scores, decide(rule, scores.logits), second, decide(rule, other), 200, 0)["accuracy"]
    assert out["interval"][1] - out["interval"][0] < 0.02


def test_other_documents_cannot_be_compared():
    scores = tiny_scores("regression")
    other = Scores([*scores.ids[1:], "new"], scores.logits, scores.targets)
    with pytest.raises(UserError, match="not of the same documents"):
        compare_scores(scores, None, other, None, 10, 0)


def test_mean_and_spread_over_seeds():
    out = over_seeds([{"f": 0.1, "n": 3, "bands": {}}, {"f": 0.3, "n": 3, "g": 1.0}])
    assert out == {"f": {"mean": pytest.approx(0.2), "std": pytest.approx(np.sqrt(0.02)), "runs": 2}}
    assert over_seeds([{"f": 0.1}])["f"]["std"] == 0.0
    with pytest.raises(UserError, match="no runs"):
        over_seeds([])


def test_an_interval_without_width_is_explained():
    said = without_width({"documents": 60, "intervals": {"accuracy": [1.0, 1.0], "macro_f1": [0.9, 1.0]}})
    assert said is not None
    assert "(accuracy)" in said
    assert "up to 0.05" in said
    assert without_width({"documents": 60, "intervals": {"macro_f1": [0.9, 1.0]}}) is None
    assert without_width({"documents": 60}) is None
