import json

import numpy as np
import pytest
from sklearn import metrics as sk

from tiny.scores import sparse_targets, tiny_scores
from tinyhat.config import EvaluateConfig
from tinyhat.decision import Rule
from tinyhat.errors import UserError
from tinyhat.evaluate.metrics import evaluate_scores
from tinyhat.tune.decided import decide, truth
from tinyhat.types import Scores, Targets

PLAIN = EvaluateConfig(bootstrap=0)


def measured(scores, rule=None, **keywords):
    rule = rule or Rule(kind="global", threshold=0.4)
    found = decide(rule, scores.logits)
    return evaluate_scores(scores, found, keywords.pop("train_counts", None), PLAIN, 0, **keywords), found


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "samples"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@pytest.mark.parametrize("seed", [0, 1])
def test_averages_are_those_of_sklearn(average, name, seed):
    scores = tiny_scores("multi", documents=200, labels=30, seed=seed)
    out, found = measured(scores)
    function = getattr(sk, f"{name}_score")
    expected = function(truth(scores.targets), found, average=average, zero_division=0)
    assert out[f"{average}_{name}"] == pytest.approx(expected, abs=1e-12)


def test_macro_over_labels_present_is_that_of_sklearn():
    scores = tiny_scores("multi", documents=40, labels=40)
    out, found = measured(scores)
    present = np.flatnonzero(scores.targets.dense().any(axis=0))
    assert len(present) < 40, "some labels do not occur"
    for name in ("precision", "recall", "f1"):
        function = getattr(sk, f"{name}_score")
        expected = function(truth(scores.targets), found, labels=present, average="macro", zero_division=0)
        assert out[f"macro_{name}_present"] == pytest.approx(expected)


def test_exact_match_and_hamming_are_those_of_sklearn():
    scores = tiny_scores("multi", documents=300, labels=6)
    out, found = measured(scores)
    true = truth(scores.targets)
    assert out["exact_match"] == pytest.approx(sk.accuracy_score(true, found))
    assert out["hamming_loss"] == pytest.approx(sk.hamming_loss(true, found))


def test_log_loss_is_the_summed_binary_cross_entropy():
    scores = tiny_scores("multi", documents=50, labels=5)
    x, y = scores.logits.astype(np.float64), scores.targets.dense()
    p = 1 / (1 + np.exp(-x))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(axis=1).mean()
    assert measured(scores)[0]["log_loss"] == pytest.approx(expected, rel=1e-5)


def test_single_label_figures_are_those_of_sklearn():
    scores = tiny_scores("single", documents=400, labels=12)
    out, _ = measured(scores, Rule(kind="argmax"))
    labels, best = scores.targets.values, scores.logits.argmax(axis=1)
    probabilities = np.exp(scores.logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert out["accuracy"] == pytest.approx(sk.accuracy_score(labels, best))
    assert out["macro_f1"] == pytest.approx(sk.f1_score(labels, best, average="macro"))
    assert out["weighted_f1"] == pytest.approx(sk.f1_score(labels, best, average="weighted"))
    assert out["micro_f1"] == pytest.approx(out["accuracy"])
    assert out["top_3_accuracy"] == pytest.approx(sk.top_k_accuracy_score(labels, scores.logits, k=3))
    assert out["log_loss"] == pytest.approx(sk.log_loss(labels, probabilities), rel=1e-5)
    assert out["confusion"]["matrix"] == sk.confusion_matrix(labels, best).tolist()


def test_confusion_names_the_commonest_mistakes():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2, 0]]
    scores = Scores(list("abcdef"), logits, Targets("single", 3, np.array([0, 0, 0, 1, 1, -1])))
    out, _ = measured(scores, Rule(kind="argmax"), names=["x", "y", "z"])
    assert out["confusion"]["pairs"] == [["x", "y", 2], ["y", "z", 1]]
    assert out["confusion"]["outside"] == 1
    assert out["accuracy"] == pytest.approx(2 / 6), "a document whose label is outside the space is a mistake"


def test_calibration_error_by_hand():
    # two documents at confidence 0.8, one right: |1 - 1.6| / 2; one at 0.6, right: 0.4
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    scores = Scores(list("abc"), np.log(p).astype(np.float32), Targets("single", 2, np.array([0, 1, 1])))
    assert measured(scores, Rule(kind="argmax"))[0]["calibration_error"] == pytest.approx((0.6 + 0.4) / 3, abs=1e-6)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_order_of_documents_and_of_labels_does_not_matter(task):
    scores = tiny_scores(task, documents=80, labels=6)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(80), rng.permutation(6)
    hot = (scores.targets.dense() > 0)[rows][:, columns]
    targets = sparse_targets(hot) if task == "multi" else Targets("single", 6, hot.argmax(axis=1))
    moved = Scores([scores.ids[i] for i in rows], scores.logits[rows][:, columns], targets)
    before, after = measured(scores)[0], measured(moved)[0]
    for name, value in before.items():
        if isinstance(value, float):
            assert after[name] == pytest.approx(value, rel=1e-6), name


def test_bands_are_the_metrics_of_their_labels():
    scores = tiny_scores("multi", documents=150, labels=9)
    counts = np.array([900, 50, 49, 10, 1, 0, 0, 60, 5])
    out, found = measured(scores, train_counts=counts)
    bands = out["bands"]
    assert {name: band["labels"] for name, band in bands.items()} == {"frequent": 3, "few": 4, "zero_shot": 2}
    assert sum(band["positives"] for band in bands.values()) == len(scores.targets.values)
    few = [2, 3, 4, 8]
    hot, dense = scores.targets.dense()[:, few], found.toarray()[:, few]
    assert bands["few"]["macro_f1"] == pytest.approx(sk.f1_score(hot, dense, average="macro"))
    assert bands["few"]["micro_f1"] == pytest.approx(sk.f1_score(hot, dense, average="micro"))
    has = hot.any(axis=1)
    assert bands["few"]["documents"] == has.sum()
    assert bands["few"]["ndcg_at_5"] == pytest.approx(sk.ndcg_score(hot[has], scores.logits[:, few][has], k=5))


def test_a_band_without_labels_leaves_its_metrics_out():
    out, _ = measured(tiny_scores("multi", labels=3), train_counts=np.array([5, 6, 7]))
    assert out["bands"]["zero_shot"] == {"labels": 0, "positives": 0}


@pytest.mark.parametrize("rule", [Rule(kind="global", threshold=99.0), Rule(kind="global", threshold=-99.0)])
def test_nothing_or_everything_decided_is_still_json(rule):
    scores = tiny_scores("multi", documents=12, labels=4)
    found = decide(rule, scores.logits)
    out = evaluate_scores(scores, found, np.array([0, 1, 2, 3]), EvaluateConfig(bootstrap=20), 0)
    assert json.loads(json.dumps(out, allow_nan=False))["documents"] == 12


def test_a_split_where_nothing_is_true():
    scores = tiny_scores("multi", documents=5, labels=4)
    bare = Scores(scores.ids, scores.logits, sparse_targets(np.zeros((5, 4), bool)))
    out = evaluate_scores(
        bare, decide(Rule(kind="top_k", k=1), bare.logits), np.arange(4), EvaluateConfig(bootstrap=20), 0
    )
    assert out["micro_f1"] == out["macro_f1"] == out["mrr"] == out["ndcg_at_5"] == 0.0
    json.dumps(out, allow_nan=False)


def test_scores_without_truth_are_refused():
    scores = tiny_scores()
    with pytest.raises(UserError, match="no true labels"):
        evaluate_scores(Scores(scores.ids, scores.logits, None), None, None, PLAIN, 0)
