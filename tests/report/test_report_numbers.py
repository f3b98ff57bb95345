from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from tinyhat.data.labels import LabelSpace
from tinyhat.decision import activate
from tinyhat.report.mistakes import multi_mistakes, regression_mistakes, shorten, single_mistakes, top_probability
from tinyhat.report.numbers import readable, score_row, show, show_interval, show_seconds, verdict
from tinyhat.types import Scores, Targets


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.65649, "0.656"), (-0.084, "−0.084"), (123.456, "123.5"), (12345.6, "12,346"), (6000, "6,000"), (None, "–"),
        (float("nan"), "–"), (True, "–"), ("0.5", "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value, text):
    assert show(value) == text


@given(st.one_of(st.floats(), st.integers(), st.none(), st.text()))
def test_any_value_can_be_shown(value):
    assert isinstance(show(value), str)
    assert isinstance(show_seconds(value), str)


def test_durations_and_names():
    assert [show_seconds(s) for s in (4.25, 61, 2592.2, 7505)] == ["4.25 s", "1 min 01 s", "43 min 12 s", "2 h 05 min"]
    assert readable("ndcg_at_5") == "nDCG@5"
    assert readable("rp_at_10") == "RP@10"
    assert readable("micro_f1") == "micro-F1"
    assert readable("something_new") == "something new"
    assert show_interval((0.1, 0.25)) == "[0.100, 0.250]"


def test_gain_is_positive_where_the_model_is_better():
    metrics = {"micro_f1": 0.7, "mae": 0.2, "baseline": {"micro_f1": 0.6, "mae": 0.3}}
    assert score_row(metrics, "micro_f1").gain == pytest.approx(0.1)
    assert score_row(metrics, "mae").gain == pytest.approx(0.1)
    assert score_row(metrics, "absent") is None


@pytest.mark.parametrize(
    ("base", "interval", "ending"),
    [
        (0.5, [0.48, 0.52], "this model is 0.200 ahead; the intervals do not overlap."),
        (0.72, [0.69, 0.75], "this model is 0.020 behind, but the intervals overlap."),
        (0.72, None, "this model is 0.020 behind."),
        (0.7, None, "the same."),
    ],
)
def test_the_verdict_says_who_is_ahead(base, interval, ending):
    baseline = {"micro_f1": base, "intervals": {"micro_f1": interval}}
    said = verdict({"task": "multi", "micro_f1": 0.7, "intervals": {"micro_f1": [0.68, 0.71]}, "baseline": baseline})
    assert said.endswith(ending)


@given(st.text(), st.integers(1, 50))
def test_shortened_texts_keep_words_and_length(text, most):
    short = shorten(text, most)
    assert len(short) <= most + 2
    assert " ".join(text.split()).startswith(short.removesuffix(" …"))
    if len(text) <= most:
        assert short == " ".join(text.split())


def test_the_surest_probability_is_that_of_softmax():
    logits = np.random.default_rng(0).normal(0, 3, (2500, 7)).astype(np.float32)
    best, confidence = top_probability(logits)
    reference = activate(logits, "softmax")
    assert (best == reference.argmax(axis=1)).all()
    np.testing.assert_allclose(confidence, reference.max(axis=1), rtol=1e-6)


def multi() -> tuple[Scores, sparse.csr_array, LabelSpace]:
    #            frequent  rare  unseen
    logits = np.array([[3.0, -4.0, -6.0], [2.0, 1.0, -9.0], [-5.0, 4.0, 1.0]], dtype=np.float32)
    targets = Targets("multi", 3, np.array([1, 2, 0, 0], dtype=np.int64), np.array([0, 2, 3, 4], dtype=np.int64))
    return (
        Scores(["a", "b", "c"], logits, targets),
        sparse.csr_array(logits > 0),
        LabelSpace(("frequent", "rare", "unseen"), np.array([90, 3, 0])),
    )


def test_multi_label_mistakes_are_the_surest():
    scores, decided, labels = multi()
    wrong, missed = multi_mistakes(scores, decided, labels, {}, frequent=50)
    # a document once, and new labels first: unseen in c is left out, rare again in b comes last
    assert [(m.id, m.reason) for m in wrong] == [
        ("c", "rare decided at 98%"),
        ("a", "frequent decided at 95%"),
        ("b", "rare decided at 73%"),
    ]
    assert [(m.id, m.reason) for m in missed] == [("c", "frequent missed at under 1%")]
    assert [(c.label, c.kind) for c in wrong[1].chips] == [
        ("frequent", "wrong"),
        ("rare", "missed"),
        ("unseen", "missed"),
    ]
    assert wrong[1].chips[0].probability == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-6)
    assert [c.kind for c in multi_mistakes(scores, decided, labels, {}, 50)[0][0].chips] == [
        "wrong",
        "wrong",
        "missed",
    ]


def test_misses_of_unseen_labels_are_never_examples():
    scores, decided, labels = multi()
    _, missed = multi_mistakes(scores, decided, labels, {}, frequent=1000)
    assert {m.reason.split()[0] for m in missed} == {"frequent", "rare"}


def test_single_mistakes_leave_out_labels_outside_the_space():
    logits = np.array([[4.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 9.0]], dtype=np.float32)
    scores = Scores(["a", "b", "c", "d"], logits, Targets("single", 2, np.array([-1, 1, 1, 1], dtype=np.int64)))
    found = single_mistakes(scores, LabelSpace(("x", "y"), np.array([1, 1])), {})
    assert [m.id for m in found] == ["b", "c"]
    assert found[0].reason == "y taken for x at 95%"


def test_regression_mistakes_are_measured_in_standard_deviations():
    true = np.array([[0.0, 0.0], [1.0, 100.0], [2.0, 200.0]], dtype=np.float32)
    predicted = true + np.array([[0.0, 9.0], [1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    scores = Scores(["a", "b", "c"], predicted, Targets("regression", 2, true))
    found = regression_mistakes(scores, LabelSpace(("small", "large"), np.array([3, 3])), {})
    assert [m.id for m in found] == ["b", "a", "c"]
    assert found[0].reason == "small: true 1, predicted 2; large: true 100, predicted 100"
