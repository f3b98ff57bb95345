"""What tinyhat saves, plain transformers loads: the same probabilities to 1e-5, by hand and through its pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.corpus import tiny_rows, write_tiny
from tests.tiny.models import save_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import tinyhat


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def settings(model, **changes):
    return {
        "encoder.model": str(model), "reading.max_tokens": 24, "train.max_steps": 12, "train.batch_size": 8,
        "train.learning_rate": 3e-3, "evaluate.bootstrap": 0, "evaluate.baseline": False,
    } | changes  # fmt: skip


@pytest.mark.parametrize("task", ["single", "multi"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_probabilities_equal_plain_transformers(tmp_path, family, task):
    write_tiny(tmp_path / "data", task)
    save_tiny(tmp_path / "model", family)
    tinyhat.train(tmp_path / "data", tmp_path / "run", settings(tmp_path / "model"), say=lambda _: None)
    texts = [row["text"] for row in tiny_rows(task, 20, seed=5)] + ["fish", "market " * 200]
    ours = tinyhat.load(tmp_path / "run", plan="fp32").predict_proba(texts)

    folder = tmp_path / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 24
    with torch.no_grad():
        inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        logits = model(**inputs).logits
    theirs = torch.softmax(logits, 1) if task == "single" else torch.sigmoid(logits)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)

    classify = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    labels = tinyhat.load(tmp_path / "run").labels
    for row, scores in zip(ours, classify(texts, truncation=True), strict=True):
        found = {score["label"]: score["score"] for score in scores}
        np.testing.assert_allclose(row, [found[label] for label in labels], atol=1e-5)


def test_regression_values_equal_plain_transformers(tmp_path):
    write_tiny(tmp_path / "data", "regression")
    save_tiny(tmp_path / "model", "bert")
    given = settings(tmp_path / "model", **{"data.target": ("a", "b")})
    tinyhat.train(tmp_path / "data", tmp_path / "run", given, say=lambda _: None)
    texts = [row["text"] for row in tiny_rows("regression", 10, seed=5)]
    ours = tinyhat.load(tmp_path / "run", plan="fp32").predict_proba(texts)
    folder = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    assert tinyhat.load(tmp_path / "run").predict(texts[:1])[0]["labels"].keys() == {"a", "b"}


@pytest.mark.parametrize("family", ["mobilebert", "deberta-v2"])
def test_a_family_that_does_not_pack_runs_the_whole_way_padded(tmp_path, family):
    write_tiny(tmp_path / "data", "multi")
    save_tiny(tmp_path / "model", family)
    said = []
    given = settings(tmp_path / "model", **{"train.max_steps": 3})
    tinyhat.train(tmp_path / "data", tmp_path / "run", given, say=said.append)
    assert any("padded by length" in sentence for sentence in said)
    texts = [row["text"] for row in tiny_rows("multi", 9, seed=5)]
    classifier = tinyhat.load(tmp_path / "run", plan="fp32")
    together = classifier.predict_proba(texts)
    alone = np.concatenate([classifier.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
