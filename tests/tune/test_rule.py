import numpy as np
import pytest
from sklearn.metrics import f1_score

from tiny.scores import sparse_targets, tiny_scores
from tinyhat.config import TuneConfig
from tinyhat.decision import Rule
from tinyhat.errors import UserError
from tinyhat.tune.decided import decide, truth
from tinyhat.tune.rule import cross_fitted, deal, fit_rule
from tinyhat.types import Scores


def test_auto_fits_the_task():
    kinds = {task: fit_rule(tiny_scores(task), TuneConfig()).kind for task in ("single", "multi", "regression")}
    assert kinds == {"single": "argmax", "multi": "thresholds", "regression": "value"}


def test_rule_holds_what_it_needs_and_survives_json():
    scores = tiny_scores(labels=8)
    for kind in ("thresholds", "global", "top_k", "argmax"):
        rule = fit_rule(scores, TuneConfig(rule=kind, top_k=3))
        again = Rule.model_validate_json(rule.model_dump_json())
        assert again == rule
        assert (decide(again, scores.logits) != decide(rule, scores.logits)).nnz == 0
    with pytest.raises(UserError, match="decides every label"):
        fit_rule(scores, TuneConfig(rule="top_k", top_k=8))


@pytest.mark.parametrize(
    ("task", "kind", "said"), [("single", "thresholds", "use argmax"), ("regression", "global", "leave it at auto")]
)
def test_rules_that_do_not_fit_the_task_are_refused(task, kind, said):
    with pytest.raises(UserError, match=said):
        fit_rule(tiny_scores(task), TuneConfig(rule=kind))


def test_a_dev_split_without_labels_is_refused():
    scores = tiny_scores()
    bare = Scores(scores.ids, scores.logits, sparse_targets(np.zeros(scores.logits.shape, bool)))
    with pytest.raises(UserError, match="no document of the dev split has a label"):
        fit_rule(bare, TuneConfig())
    assert fit_rule(bare, TuneConfig(rule="top_k")).kind == "top_k"


def test_folds_part_the_documents():
    folds = deal(23, 5, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(23))
    assert {len(fold) for fold in folds} == {4, 5}
    assert len(deal(3, 5, seed=0)) == 3
    assert not np.array_equal(folds[0], deal(23, 5, seed=1)[0])


@pytest.mark.parametrize("kind", ["thresholds", "global"])
def test_cross_fitting_never_sees_its_fold(kind):
    scores = tiny_scores(documents=100, labels=5)
    config = TuneConfig(rule=kind, shrink=2)
    fold = deal(100, config.folds, seed=0)[2]
    before, _ = cross_fitted(scores, config, seed=0)
    # other truths for one fold: its own decisions stay, because they come from the other folds
    hot = scores.targets.dense() > 0
    hot[fold] = ~hot[fold]
    after, _ = cross_fitted(Scores(scores.ids, scores.logits, sparse_targets(hot)), config, seed=0)
    np.testing.assert_array_equal(before.toarray()[fold], after.toarray()[fold])
    assert (before != after).nnz > 0, "the decisions of the other folds do depend on it"


def test_cross_fitted_decisions_are_those_of_a_rule_fitted_on_the_rest():
    scores = tiny_scores(documents=90, labels=4)
    config = TuneConfig(rule="global", folds=3)
    found, _ = cross_fitted(scores, config, seed=7)
    for fold in deal(90, 3, seed=7):
        rest = np.setdiff1d(np.arange(90), fold)
        part = Scores([scores.ids[i] for i in rest], scores.logits[rest], scores.targets.take(rest))
        np.testing.assert_array_equal(found.toarray()[fold], fit_rule(part, config).decide(scores.logits[fold]))


def test_summary_names_the_flattering_and_the_honest_figure():
    # pure noise: thresholds fitted without shrinking find F1 that is not there
    rng = np.random.default_rng(0)
    hot = rng.random((300, 40)) < 0.02
    scores = Scores([str(i) for i in range(300)], rng.normal(size=hot.shape).astype(np.float32), sparse_targets(hot))
    config = TuneConfig(rule="thresholds", shrink=0)
    found, summary = cross_fitted(scores, config, seed=0)
    assert summary["fitted_macro_f1"] > summary["macro_f1"] + 0.02
    true = truth(scores.targets)
    assert summary["macro_f1"] == pytest.approx(f1_score(true, found, average="macro", zero_division=0))
    assert summary["micro_f1"] == pytest.approx(f1_score(true, found, average="micro"))
    fitted = decide(fit_rule(scores, config), scores.logits)
    assert summary["fitted_micro_f1"] == pytest.approx(f1_score(true, fitted, average="micro"))


@pytest.mark.parametrize("task", ["single", "multi"])
def test_rules_with_nothing_to_fit_have_one_figure(task):
    scores = tiny_scores(task)
    found, summary = cross_fitted(scores, TuneConfig(rule="argmax"), seed=0)
    assert summary["micro_f1"] == summary["fitted_micro_f1"]
    np.testing.assert_array_equal(found.toarray().argmax(axis=1), scores.logits.argmax(axis=1))


def test_all_labels_in_one_fold():
    hot = np.zeros((10, 2), bool)
    hot[3, 1] = True
    scores = Scores(
        list("abcdefghij"), np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32), sparse_targets(hot)
    )
    found, _ = cross_fitted(scores, TuneConfig(), seed=0)
    assert found.toarray()[3].sum() == 0, "the only document with a label is decided by folds that know none"
