import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, precision_recall_fscore_support

from tiny.scores import sparse_targets, tiny_scores
from tinyhat.decision import Rule
from tinyhat.evaluate.per_label import LabelRow, label_table, precision_recall_points, worst_and_best
from tinyhat.tune.decided import decide, truth
from tinyhat.types import Scores


@pytest.mark.parametrize("task", ["single", "multi"])
def test_table_is_that_of_sklearn(task):
    scores = tiny_scores(task, documents=90, labels=7)
    found = decide(Rule(kind="global", threshold=0.8), scores.logits)
    table = label_table(scores, found, list("abcdefg"), np.arange(7))
    expected = precision_recall_fscore_support(truth(scores.targets), found, zero_division=0)
    rows = np.array([[row.precision, row.recall, row.f1, row.positives] for row in table]).T
    np.testing.assert_allclose(rows, np.array(expected))
    assert [row.predicted for row in table] == found.toarray().sum(axis=0).tolist()
    assert [(row.name, row.train_documents) for row in table][2] == ("c", 2)


def test_thresholds_are_shown_where_the_rule_has_them():
    scores = tiny_scores(labels=2)
    found = decide(Rule(kind="argmax"), scores.logits)
    shown = [
        [row.threshold for row in label_table(scores, found, ["a", "b"], rule=rule)]
        for rule in (
            None,
            Rule(kind="argmax"),
            Rule(kind="global", threshold=1.5),
            Rule(kind="thresholds", thresholds=(0.5, 0.0), never=(1,)),
        )
    ]
    assert shown == [[None, None], [None, None], [1.5, 1.5], [0.5, None]]


def rows(*pairs):
    return [LabelRow(str(i), None, n, n, f, f, f, None) for i, (n, f) in enumerate(pairs)]


def test_worst_and_best_leave_out_labels_with_few_positives():
    worst, best = worst_and_best(rows((9, 0.5), (2, 0.0), (9, 0.1), (30, 0.9), (4, 1.0), (9, 0.9)), 2)
    assert [row.name for row in worst] == ["2", "0"]
    assert [row.name for row in best] == ["3", "5"]


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from([0.0, 0.5, 1.0])), max_size=12), st.integers(0, 8))
def test_no_label_is_both_worst_and_best(pairs, count):
    worst, best = worst_and_best(rows(*pairs), count)
    assert len(worst) == len(best) <= count
    assert not {row.name for row in worst} & {row.name for row in best}


def test_curve_lies_on_that_of_sklearn():
    scores = tiny_scores("multi", documents=80, labels=6)
    hot = scores.targets.dense().ravel()
    precision, recall, thresholds = precision_recall_curve(hot, scores.logits.ravel())
    known = {float(t): (p, r) for t, p, r in zip(thresholds, precision, recall, strict=False)}
    curve = precision_recall_points(scores, points=40)
    assert len(curve["threshold"]) == 40
    for t, p, r in zip(curve["threshold"], curve["precision"], curve["recall"], strict=True):
        assert known[t] == (pytest.approx(p), pytest.approx(r))
    assert curve["recall"] == sorted(curve["recall"])
    assert curve["recall"][-1] == 1.0


def test_curve_of_a_single_label_task_ranks_probabilities():
    scores = tiny_scores("single", documents=80, labels=4)
    shifted = Scores(scores.ids, scores.logits + np.arange(80, dtype=np.float32)[:, None], scores.targets)
    a, b = precision_recall_points(scores), precision_recall_points(shifted)
    np.testing.assert_allclose(a["precision"], b["precision"], atol=0.02)


def test_curve_without_a_true_label_is_empty():
    scores = tiny_scores()
    bare = Scores(scores.ids, scores.logits, sparse_targets(np.zeros(scores.logits.shape, bool)))
    assert precision_recall_points(bare) == {"recall": [], "precision": [], "threshold": []}
