"""The scikit-learn estimator keeps scikit-learn's promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from tests.tiny.corpus import tiny_rows
from tests.tiny.models import save_tiny

from tinyhat import TinyhatClassifier, UserError

SETTINGS = {"train.learning_rate": 3e-3, "train.batch_size": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def data(task, count=120, seed=0):
    rows = tiny_rows(task, count, seed)
    return [row["text"] for row in rows], [row["label" if task == "single" else "labels"] for row in rows]


def test_one_label(tmp_path):
    model = TinyhatClassifier(model=str(save_tiny(tmp_path / "m", "bert")), epochs=6, max_tokens=48, settings=SETTINGS)
    X, y = data("single")
    assert model.fit(X, y) is model
    assert list(model.classes_) == sorted(set(y))
    X, y = data("single", 40, seed=1)
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (40, 5)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert list(model.predict(X)) == [model.classes_[j] for j in probabilities.argmax(1)]
    assert model.score(X, y) == np.mean(model.predict(X) == np.array(y, dtype=object)) > 0.5


def test_several_labels_and_a_run_that_is_kept(tmp_path):
    path = save_tiny(tmp_path / "m", "bert")
    model = TinyhatClassifier(str(path), epochs=4, max_tokens=48, out=str(tmp_path / "run"), settings=SETTINGS)
    X, y = data("multi")
    model.fit(X, y)
    chosen = model.predict(X)
    assert sparse.issparse(chosen)
    assert chosen.shape == (120, 5)
    assert set(np.unique(chosen.toarray())) <= {0, 1}
    assert (tmp_path / "run" / "report.html").exists()


def test_parameters_travel_and_fitting_is_needed():
    model = TinyhatClassifier("linear", epochs=1.5, seed=4)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(seed=5).seed == 5
    with pytest.raises(NotFittedError):
        model.predict(["text"])


@pytest.mark.parametrize(
    ("X", "y", "sentence"),
    [
        ("one text", ["a"], "give a list"),
        (["a", 3], ["x", "y"], r"X\[1\] is a int"),
        (["a", "b"], ["x"], "equally many"),
        (["a b"] * 8, ["x"] * 8, "only the label"),
    ],
)
def test_mistakes(X, y, sentence):
    with pytest.raises(UserError, match=sentence):
        TinyhatClassifier("linear").fit(X, y)


@pytest.mark.parametrize("labels", [[3, 10, 2, 7, 5], [True, False]])
def test_labels_come_back_as_they_were_given(labels):
    X, y = data("single", 200)
    names = sorted(set(y))
    y = [labels[names.index(label) % len(labels)] for label in y]
    model = TinyhatClassifier("linear").fit(X, np.array(y))
    assert sorted(model.classes_.tolist()) == sorted(labels)
    assert model.predict(X[:5]).dtype == np.array(labels).dtype
    assert model.score(X, y) > 0.8
    assert 0 < model.metrics_["accuracy"] <= 1


@pytest.mark.parametrize("form", [np.array, sparse.csr_matrix])
def test_an_indicator_matrix_is_multi_label(form):
    X, y = data("multi", 200)
    names = sorted({label for labels in y for label in labels})
    dense = np.array([[int(name in labels) for name in names] for labels in y])
    model = TinyhatClassifier("linear").fit(X, form(dense))
    assert (model.predict(X).toarray() == dense).mean() > 0.9
