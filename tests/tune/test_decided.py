import numpy as np
import pytest
from sklearn.metrics import f1_score

from tiny.scores import sparse_targets, tiny_scores
from tinyhat.decision import Rule
from tinyhat.errors import UserError
from tinyhat.tune.decided import decide, label_counts, require_targets, truth
from tinyhat.types import Scores, Targets


@pytest.mark.parametrize("task", ["single", "multi"])
def test_truth_is_the_dense_targets(task):
    targets = tiny_scores(task).targets
    np.testing.assert_array_equal(truth(targets).toarray(), targets.dense() > 0)


def test_truth_of_a_label_outside_the_space_is_an_empty_row():
    assert truth(Targets("single", 3, np.array([1, -1, 2]))).toarray().sum(axis=1).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(kind="global", threshold=0.1),
        Rule(kind="thresholds", thresholds=(0.0, -1.0, 1.0, 0.1, 0.2, 0.3, -5.0, 9.0), never=(3,)),
        Rule(kind="global", threshold=0.25, never=(0, 7)),
        Rule(kind="top_k", k=3, never=(1,)),
        Rule(kind="top_k", k=3),
        Rule(kind="argmax"),
    ],
)
def test_blocks_of_rows_decide_as_the_whole_matrix(rule):
    logits = np.random.default_rng(0).normal(size=(1100, 8)).astype(np.float32)  # more than two blocks
    found = decide(rule, logits)
    np.testing.assert_array_equal(found.toarray(), rule.decide(logits))
    assert found.dtype == bool
    assert found.has_canonical_format


def test_counts_give_the_f1_of_sklearn():
    scores = tiny_scores("multi", documents=300, labels=12)
    true, found = truth(scores.targets), decide(Rule(kind="global", threshold=0.5), scores.logits)
    counts = label_counts(true, found)
    np.testing.assert_allclose(counts.f1(), f1_score(true, found, average=None, zero_division=0))
    assert counts.micro_f1() == pytest.approx(f1_score(true, found, average="micro"))


def test_nothing_true_and_nothing_decided_is_zero():
    empty = truth(sparse_targets(np.zeros((3, 2), bool)))
    assert label_counts(empty, empty).micro_f1() == 0.0
    assert label_counts(empty, empty).f1().tolist() == [0.0, 0.0]


def test_scores_that_cannot_be_measured_are_refused():
    good = tiny_scores()
    with pytest.raises(UserError, match="no true labels"):
        require_targets(Scores(good.ids, good.logits, None))
    bad = good.logits.copy()
    bad[7, 2] = np.nan
    with pytest.raises(UserError, match="'d7' are NaN"):
        require_targets(Scores(good.ids, bad, good.targets))
    with pytest.raises(ValueError, match="do not fit"):
        require_targets(Scores(good.ids, good.logits[:, :3], good.targets))
    with pytest.raises(UserError, match="no document"):
        require_targets(Scores([], good.logits[:0], good.targets.take(np.zeros(0, np.int64))))
