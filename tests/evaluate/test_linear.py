"""The linear model against scikit-learn, its file, and its edges."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.sparse import csc_array, csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score
from sklearn.svm import LinearSVC

from tinyhat.errors import UserError
from tinyhat.evaluate import linear, linear_solver
from tinyhat.evaluate.linear import LinearPredictor, fit_linear, load_linear
from tinyhat.evaluate.linear_solver import fit_ridge, fit_svm
from tinyhat.evaluate.tfidf import fit_tfidf
from tinyhat.types import Document, Targets


def corpus(documents: int, labels: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of Zipf words, and bool [N, L]: half of a document's words are typical of its labels, rarer ones last."""
    rng = np.random.default_rng(seed)
    rarity = 1 / np.arange(1, labels + 1)
    truth = rng.random((documents, labels)) < 0.5 * rarity
    common = 1 / np.arange(1, 1001)
    texts = []
    for row in truth:
        words = [f"w{i}" for i in rng.choice(1000, size=25, p=common / common.sum())]
        for j in np.flatnonzero(row):
            words += [f"t{j}x{i}" for i in rng.integers(0, 8, size=3)] + [f"w{rng.integers(0, 1000)}"]
        texts.append(" ".join(words))
    return texts, truth


def multi(truth: np.ndarray) -> Targets:
    rows = csr_array(truth.astype(np.float32))
    return Targets("multi", truth.shape[1], rows.indices.astype(np.int64), rows.indptr.astype(np.int64))


def margins(fitted: tuple[csr_array, np.ndarray], rows: csr_array) -> np.ndarray:
    return (rows @ fitted[0]).toarray() + fitted[1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab cÉé_ßİ1.\n字", max_size=30), min_size=1, max_size=8),
    st.lists(st.text(alphabet="ab cÉé_ßİ1.\n字", max_size=30), max_size=4),
    st.integers(1, 2),
)
def test_tfidf_is_scikit_learns(texts, others, min_df):
    reference = TfidfVectorizer(sublinear_tf=True, min_df=min_df, dtype=np.float64)
    try:
        expected = reference.fit_transform(texts)
    except ValueError:
        with pytest.raises(UserError, match="no word of two or more letters"):
            fit_tfidf(texts, min_df)
        return
    tfidf = fit_tfidf(texts, min_df)
    assert list(tfidf.vocabulary) == list(reference.get_feature_names_out())
    np.testing.assert_allclose(tfidf.idf, reference.idf_, rtol=1e-6)
    np.testing.assert_allclose(tfidf.transform(texts)[0].toarray(), expected.toarray(), atol=1e-6)
    found, words = tfidf.transform(others)
    assert found.shape == (len(others), len(tfidf.vocabulary))
    assert words == [len(reference.build_analyzer()(text)) for text in others]
    if others:
        np.testing.assert_allclose(found.toarray(), reference.transform(others).toarray(), atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_svm_is_linear_svc(weighted, monkeypatch):
    # far more documents than the 20 negatives a label begins with: the working sets have to grow
    monkeypatch.setattr(linear_solver, "NEGATIVES", 20)
    monkeypatch.setattr(linear_solver, "SLACK", 1e-3)
    monkeypatch.setattr(linear_solver, "TOLERANCE", 1e-4)
    monkeypatch.setattr(linear_solver, "PRUNE", 0.0)
    texts, truth = corpus(1200, 12)
    rows, _ = fit_tfidf(texts, 1).transform(texts)
    s = np.random.default_rng(1).uniform(0.2, 3, len(texts)).astype("f") if weighted else np.ones(len(texts), "f")
    found = margins(fit_svm(rows, csc_array(truth.astype("f")), 1.0, s), rows)
    for j in range(truth.shape[1]):
        svc = LinearSVC(C=1.0, dual=False, tol=1e-8, max_iter=10_000)
        svc.fit(rows.astype(np.float64), truth[:, j], sample_weight=s)
        np.testing.assert_allclose(found[:, j], svc.decision_function(rows.astype(np.float64)), atol=5e-3)


def test_defaults_decide_as_well_as_linear_svc():
    texts, truth = corpus(3000, 40)
    train, test = slice(0, 2000), slice(2000, None)
    kept = truth[train].any(axis=0)
    model = fit_linear(texts[train], None, multi(truth[train]), None, 0)
    ours = model.logits(texts[test])[:, kept]
    rows = model.tfidf.transform(texts)[0].astype(np.float64)
    theirs = np.stack(
        [LinearSVC().fit(rows[:2000], truth[train, j]).decision_function(rows[2000:]) for j in np.flatnonzero(kept)], 1
    )

    def best(scores: np.ndarray) -> float:
        cuts = np.quantile(scores, np.linspace(0.8, 0.999, 80))
        return max(f1_score(truth[test][:, kept], scores > c, average="micro", zero_division=0) for c in cuts)

    assert best(theirs) > 0.6  # or the comparison says nothing
    assert best(ours) > best(theirs) - 0.005


@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_is_scikit_learns(weighted):
    texts, truth = corpus(300, 6)
    rng = np.random.default_rng(0)
    values = (truth @ rng.normal(size=(6, 2)) * [1.0, 500.0] + [3.0, -2000.0]).astype(np.float32)
    s = rng.uniform(0.2, 3, 300).astype("f") if weighted else np.ones(300, "f")
    rows, _ = fit_tfidf(texts, 1).transform(texts)
    expected = Ridge(alpha=2.0, solver="cholesky").fit(rows.toarray(), values, sample_weight=s).predict(rows.toarray())
    found = margins(fit_ridge(rows, values, 2.0, s), rows)
    np.testing.assert_allclose(found / [1, 500], expected / [1, 500], atol=2e-4)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_saved_and_loaded_is_the_same_to_the_bit(task, tmp_path):
    texts, truth = corpus(200, 5)
    targets = {
        "single": Targets("single", 5, truth.argmax(axis=1)),
        "multi": multi(truth),
        "regression": Targets("regression", 2, truth[:, :2].astype(np.float32)),
    }[task]
    model = fit_linear(texts, None, targets, None, 0)
    model.save(tmp_path / "model")
    again = load_linear(tmp_path / "model")
    np.testing.assert_array_equal(again.logits(texts), model.logits(texts))
    assert again.task == task
    # plain JSON and safetensors, nothing that could be a pickle
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"linear.json", "model.safetensors"}
    assert json.loads((tmp_path / "model" / "linear.json").read_text())["vocabulary"] == list(model.tfidf.vocabulary)
    assert "bias" in load_file(tmp_path / "model" / "model.safetensors")


def test_two_fits_have_the_same_bits_whatever_the_threads(monkeypatch):
    texts, truth = corpus(600, 150)
    monkeypatch.setattr(linear_solver, "_cores", lambda: 1)
    one = fit_linear(texts, None, multi(truth), None, 3)
    monkeypatch.setattr(linear_solver, "_cores", lambda: 3)
    two = fit_linear(texts, None, multi(truth), None, 3)
    np.testing.assert_array_equal(one.bias, two.bias)
    np.testing.assert_array_equal(one.weights.toarray(), two.weights.toarray())


def test_a_row_does_not_depend_on_its_neighbours():
    texts, truth = corpus(100, 4)
    model = fit_linear(texts, None, multi(truth), None, 0)
    np.testing.assert_array_equal(model.logits(texts)[7:8], model.logits(texts[7:8]))


def test_probabilities_of_the_single_task_mean_something():
    texts, truth = corpus(1500, 4)
    noisy = truth.argmax(axis=1)
    noisy[::4] = np.random.default_rng(0).integers(0, 4, len(noisy[::4]))  # a quarter of the labels is chance
    model = fit_linear(texts[:1000], None, Targets("single", 4, noisy[:1000]), None, 0)
    logits = model.logits(texts[1000:])
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (e / e.sum(axis=1, keepdims=True)).max(axis=1).mean()
    assert abs(confidence - (logits.argmax(axis=1) == noisy[1000:]).mean()) < 0.08


def test_probabilities_of_the_multi_task_add_up():
    texts, truth = corpus(1500, 30)
    model = fit_linear(texts[:1000], None, multi(truth[:1000]), None, 0)
    probabilities = 1 / (1 + np.exp(-model.logits(texts[1000:]).astype(np.float64)))
    assert probabilities.sum() == pytest.approx(truth[1000:].sum(), rel=0.15)


def test_a_label_without_documents_is_never_likely():
    texts, truth = corpus(80, 6)
    truth[:, 2] = False
    logits = fit_linear(texts, None, multi(truth), None, 0).logits([*texts, "", "unheard"])
    assert (logits[:, 2] == linear.UNSEEN).all()
    assert (np.delete(logits, 2, axis=1) > linear.UNSEEN).all()
    single = fit_linear(texts, None, Targets("single", 7, truth.argmax(axis=1)), None, 0).logits(["", *texts])
    assert not (single.argmax(axis=1) == 6).any()


def test_text_without_known_words_gets_the_bias():
    texts, truth = corpus(80, 3)
    model = fit_linear(texts, None, multi(truth), None, 0)
    logits = model.logits(["", "zzz yyy", "?"])
    np.testing.assert_array_equal(logits, np.tile(model.bias, (3, 1)))
    assert model.logits([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("texts", "truth"),
    [
        (["word", "word", "word word"], [[1], [0], [1]]),  # one word in every text
        (["cat"], [[1, 0]]),  # one document
        (["cat", "dog", "cat"], [[1, 1], [1, 0], [1, 1]]),  # a label that every document has
        (["cat", "", "dog"] * 4, [[1, 0], [0, 0], [0, 1]] * 4),  # an empty text, a document without labels
    ],
)
def test_tiny_data_is_fitted(texts, truth):
    logits = fit_linear(texts, None, multi(np.array(truth, dtype=bool)), None, 0).logits(texts)
    assert np.isfinite(logits).all()


def test_single_documents_outside_the_label_space_are_left_out():
    texts, truth = corpus(120, 3)
    classes = truth.argmax(axis=1)
    outside = classes.copy()
    outside[100:] = -1
    some = fit_linear(texts[:100], None, Targets("single", 3, classes[:100]), None, 0)
    np.testing.assert_array_equal(
        fit_linear(texts, None, Targets("single", 3, outside), None, 0).logits(texts), some.logits(texts)
    )


def test_weights_count_by_proportion_and_matter():
    texts, truth = corpus(150, 3)
    ones = fit_linear(texts, None, multi(truth), None, 0).logits(texts)
    twos = fit_linear(texts, None, multi(truth), np.full(150, 2, "f"), 0).logits(texts)
    np.testing.assert_array_equal(ones, twos)
    # an absent document and one that weighs next to nothing are the same
    light = np.where(np.arange(150) < 100, 1, 1e-6).astype("f")
    rows = fit_tfidf(texts, 1).transform(texts)[0]
    labels = csc_array(truth.astype("f"))
    weighed = margins(fit_svm(rows, labels, 1.0, light), rows)
    absent = margins(fit_svm(rows[:100], csc_array(labels[:100]), 1.0, light[:100]), rows)
    np.testing.assert_allclose(weighed, absent, atol=0.05)
    assert np.abs(weighed - margins(fit_svm(rows, labels, 1.0, np.ones(150, "f")), rows)).max() > 0.2


def test_pairs_are_read():
    texts, truth = corpus(150, 3)
    model = fit_linear(["same text"] * 150, texts, multi(truth), None, 0)
    assert len(np.unique(model.logits(["same text"] * 150, texts)[:, 0])) > 100
    predicted = list(LinearPredictor(model).predict_logits(iter([Document("a", "same text", texts[0])])))
    np.testing.assert_array_equal(predicted[0].logits, model.logits(["same text"], texts[:1])[0])


def test_predictor_streams_in_order(monkeypatch):
    monkeypatch.setattr(linear, "WINDOW", 4)
    texts, truth = corpus(50, 3)
    model = fit_linear(texts, None, multi(truth), None, 0)
    taken = []

    def documents():
        for i, text in enumerate(texts):
            taken.append(i)
            yield Document(f"d{i}", text)

    predictor = LinearPredictor(model)
    first = list(islice(predictor.predict_logits(documents()), 3))
    assert len(taken) == 4
    found = list(predictor.predict_logits(documents()))
    assert [p.id for p in found] == [f"d{i}" for i in range(50)]
    np.testing.assert_array_equal(np.stack([p.logits for p in found]), model.logits(texts))
    assert [p.tokens_read for p in found] == [len(text.split()) for text in texts]
    assert all(p.tokens_read == p.tokens_total for p in found)
    assert predictor.plan == "fp32"
    np.testing.assert_array_equal(first[0].logits, found[0].logits)


def test_progress_counts_every_label():
    texts, truth = corpus(300, 100)
    done = []
    fit_linear(texts, None, multi(truth), None, 0, done.append)
    assert sum(done) == truth.any(axis=0).sum()


def test_nothing_to_learn_from_is_said_in_one_sentence():
    with pytest.raises(UserError, match=r"no word of two or more letters.*of the 2 training texts"):
        fit_linear(["a ?", ""], None, multi(np.eye(2, dtype=bool)), None, 0)
    with pytest.raises(UserError, match="no training document with a label"):
        fit_linear(["cat", "dog"], None, Targets("single", 2, np.array([-1, -1])), None, 0)
    with pytest.raises(UserError, match="no training document with a label"):
        fit_linear(["cat", "dog"], None, multi(np.zeros((2, 2), dtype=bool)), None, 0)


def test_a_damaged_folder_is_refused(tmp_path):
    texts, truth = corpus(60, 3)
    with pytest.raises(UserError, match=r"has no linear\.json"):
        load_linear(tmp_path)
    fit_linear(texts, None, multi(truth), None, 0).save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_linear(tmp_path)
    fit_linear(texts[:30], None, multi(truth[:30]), None, 0).save(tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not fit"):
        load_linear(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_linear(tmp_path)
    tree = json.loads((tmp_path / "linear.json").read_text())
    (tmp_path / "linear.json").write_text(json.dumps(tree | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema 1"):
        load_linear(tmp_path)
