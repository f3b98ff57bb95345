"""`--layers pooled` of a run: the last linear layer makes of these vectors the logits that predict gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from huggingface_hub import constants
from tests.tiny.models import save_tiny

import tinyhat
from tinyhat.config import ReadingConfig
from tinyhat.decision import Decision, Rule, labels_sha256, write_decision
from tinyhat.embed.embedder import load_embedder
from tinyhat.encoder.hub import hub_answers
from tinyhat.errors import UserError
from tinyhat.run import file_sha256

TEXTS = ["law court market fish tax trade milk ship union state rule year " * 6, "fish", "tax trade " * 20]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose reading a test can change."""
    folder = save_tiny(tmp_path_factory.mktemp("run") / "model", "bert")

    def read_by(**reading):
        labels = tuple(f"label {i}" for i in range(3))
        facts = {
            "task": "multi", "labels": labels, "labels_sha256": labels_sha256(labels), "activation": "sigmoid",
            "weights_sha256": file_sha256(folder / "model.safetensors"), "plan": "fp32", "fitted_on": {},
            "rule": Rule(kind="global", threshold=0.0), "reading": ReadingConfig(**reading).model_dump(mode="json"),
        }  # fmt: skip
        write_decision(folder, Decision(**facts))
        return folder.parent

    return read_by


@pytest.mark.parametrize(
    "reading",
    [
        {"max_tokens": 24, "strategy": "tail"},
        {"max_tokens": 24},
        {"max_tokens": 24, "strategy": "head_tail"},
        {"max_tokens": 24, "strategy": "windows", "stride": 10},
    ],
)
def test_vectors_are_of_what_the_run_reads(run, reading):
    folder = run(**reading)
    embedder = load_embedder(folder, layers="pooled", plan="fp32")
    layer = embedder.encoder.model.classifier
    logits = embedder.embed(TEXTS) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    np.testing.assert_allclose(logits, tinyhat.load(folder).logits(TEXTS), atol=5e-6)
    assert embedder.facts()["max_tokens"] == 24
    again = load_embedder(folder, layers=embedder.layers, max_tokens=24, long=embedder.facts()["long"], plan="fp32")
    assert again.facts() == embedder.facts(), "as search and workers load it"


def test_a_vote_that_no_vector_stands_for_is_refused_unless_long_is_named(run, tmp_path):
    folder = run(max_tokens=24, strategy="windows", vote="max")
    with pytest.raises(UserError, match="say --long windows"):
        load_embedder(folder, layers="pooled")
    assert load_embedder(folder, layers="pooled", long="windows").reading is None
    assert load_embedder(folder).long == "windows"
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run(max_tokens=24, strategy="windows")
    manifest = tinyhat.embed(folder, source, tmp_path / "v.npy", layers="pooled", plan="fp32")
    assert manifest["reading"]["strategy"] == "windows"
    assert tinyhat.search(tmp_path / "v.npy", TEXTS[2], k=1)[0].id == "2"


def test_settings_mean_an_embedder_also_of_a_run(run):
    folder = run(max_tokens=24)
    assert tinyhat.load(folder, layers="pooled").embed(TEXTS).shape == (3, 32)
    assert tinyhat.load(folder).predict(TEXTS)


def test_two_labels_of_any_name_are_a_trained_classifier(tmp_path):
    folder = save_tiny(tmp_path / "two", "bert", task="single", num_labels=2)
    assert load_embedder(folder, layers="pooled").embed(TEXTS).shape == (3, 32)


def test_hidden_states_of_a_classifier_by_one_embedder(run):
    classifier = tinyhat.load(run(max_tokens=24))
    first, second = classifier.hidden_states(TEXTS), classifier.hidden_states(TEXTS[1:])
    assert first[-1].shape == (3, 24, 32)
    np.testing.assert_allclose(first[-1][1, :3], second[-1][0, :3], atol=1e-5)
    assert classifier._embedder is classifier._embedder
    assert load_embedder(run(max_tokens=24), layers="pooled", plan="amp_bf16").forward._fast is None


def test_a_classifier_of_the_hub_keeps_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_answers.cache_clear()
    cached = tmp_path / "models--owner--classifier"
    snapshot = save_tiny(cached / "snapshots" / ("0" * 40), "bert")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    found = load_embedder("owner/classifier", layers="pooled", plan="fp32").embed(TEXTS)
    np.testing.assert_allclose(found, load_embedder(snapshot, layers="pooled", plan="fp32").embed(TEXTS), atol=1e-6)
