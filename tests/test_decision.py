"""The decision: what it chooses, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, softmax

from tinyhat.decision import Decision, Rule, activate, labels_sha256, read_decision, write_decision
from tinyhat.errors import UserError
from tinyhat.run import file_sha256

LABELS = ("a", "b", "c", "d")
LOGITS = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(-80, 80, width=32))


def decision(folder, rule, task="multi", **changes):
    (folder / "model.safetensors").write_bytes(b"weights")
    fields = {
        "task": task, "labels": LABELS, "labels_sha256": labels_sha256(LABELS), "activation": "sigmoid", "rule": rule,
        "weights_sha256": file_sha256(folder / "model.safetensors"), "reading": {}, "plan": "fp32", "fitted_on": {},
    }  # fmt: skip
    return Decision(**(fields | changes))


@given(LOGITS)
def test_activations_equal_scipys(logits):
    np.testing.assert_allclose(activate(logits, "sigmoid"), expit(logits.astype(np.float64)), atol=1e-7)
    np.testing.assert_allclose(activate(logits, "softmax"), softmax(logits.astype(np.float64), axis=1), atol=1e-7)
    assert (activate(logits, "identity") == logits).all()


@given(LOGITS, st.integers(1, 6))
def test_top_k_chooses_k_and_the_lower_index_wins_a_tie(logits, k):
    chosen = Rule(kind="top_k", k=k).decide(logits)
    assert (chosen.sum(1) == min(k, 4)).all()
    for row, picks in zip(logits, chosen, strict=True):
        order = sorted(range(4), key=lambda j: (-row[j], j))
        assert set(np.flatnonzero(picks)) == set(order[:k])


def test_thresholds_are_strict_and_never_is_never():
    rule = Rule(kind="thresholds", thresholds=(0.0, 1.0, -1.0, -9.0), never=(3,))
    logits = np.array([[0.0, 1.5, -0.5, 50.0]], np.float32)
    assert rule.decide(logits).tolist() == [[False, True, True, False]]
    assert Rule(kind="global", threshold=-0.6, never=(3,)).decide(logits).tolist() == [[True, True, True, False]]
    assert Rule(kind="argmax", never=(3,)).decide(logits).tolist() == [[False, True, False, False]]


def test_decided_labels_come_best_first(tmp_path):
    found = decision(tmp_path, Rule(kind="global", threshold=0.0))
    assert found.decided_labels(np.array([1.0, 3.0, -1.0, 2.0], np.float32)) == [1, 3, 0]


def test_it_is_read_back_as_written(tmp_path):
    written = decision(tmp_path, Rule(kind="thresholds", thresholds=(0.1, 0.2, 0.3, 0.4), never=(2,)))
    write_decision(tmp_path, written)
    assert read_decision(tmp_path) == written


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda d: d["labels"].reverse(), "label list is not the one"),
        (lambda d: d.update(schema_version=2), "has schema version 2"),
        (lambda d: d["rule"].update(thresholds=[0.0]), "1 thresholds for 4 labels"),
        (lambda d: d["rule"].update(kind="best"), "is damaged at rule.kind"),
        (lambda d: d.update(weights_sha256="0" * 64), "sha256 differs"),
        (lambda d: d.pop("labels"), "is damaged at labels"),
    ],
)
def test_what_does_not_belong_is_refused(tmp_path, edit, sentence):
    write_decision(tmp_path, decision(tmp_path, Rule(kind="thresholds", thresholds=(0.1, 0.2, 0.3, 0.4))))
    tree = json.loads((tmp_path / "decision.json").read_text())
    edit(tree)
    (tmp_path / "decision.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=sentence):
        read_decision(tmp_path)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no decision\.json"):
        read_decision(tmp_path)
    write_decision(tmp_path, decision(tmp_path, Rule(kind="argmax")))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the weights are missing"):
        read_decision(tmp_path)
    (tmp_path / "decision.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_decision(tmp_path)
