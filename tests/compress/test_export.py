"""sentence-transformers loads our export and gives our vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.tiny.models import save_tiny
from typer.testing import CliRunner

import tinyhat
from tinyhat.cli import app
from tinyhat.compress import sentence_transformers as form
from tinyhat.embed.choice import POOLINGS
from tinyhat.embed.embedder import load_embedder
from tinyhat.errors import UserError

TEXTS = ["milk", "law and order in the union", "fish " * 100, "Tax; trade & ships, 27 of them."]


def by_sentence_transformers(folder):
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_equal_vectors_under_every_pooling(tmp_path, pooling):
    model = save_tiny(tmp_path / "model", "bert")
    checked = tinyhat.export(model, tmp_path / "out", pooling=pooling, say=lambda _: None)
    assert checked["largest_difference"] < 1e-5
    expected = load_embedder(model, pooling=pooling, long="truncate", plan="fp32").embed(TEXTS)
    np.testing.assert_allclose(by_sentence_transformers(tmp_path / "out"), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "deberta-v2", "albert"])
def test_equal_vectors_of_other_families_normalized_and_cut_early(tmp_path, family):
    model = save_tiny(tmp_path / "model", family)
    tinyhat.export(model, tmp_path / "out", normalize=True, max_tokens=20, say=lambda _: None)
    found = by_sentence_transformers(tmp_path / "out")
    expected = load_embedder(model, normalize=True, max_tokens=20, long="truncate", plan="fp32").embed(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_lower_layer_is_exported_without_those_above(tmp_path):
    model = save_tiny(tmp_path / "model", "bert")
    tinyhat.export(model, tmp_path / "out", layers="1", pooling="cls", say=lambda _: None)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 1
    expected = load_embedder(model, layers="1", pooling="cls", long="truncate", plan="fp32").embed(TEXTS)
    np.testing.assert_allclose(by_sentence_transformers(tmp_path / "out"), expected, atol=1e-5)
    other = save_tiny(tmp_path / "albert", "albert")
    with pytest.raises(UserError, match="choose the last layer"):
        tinyhat.export(other, tmp_path / "none", layers="1")
    final_norm = save_tiny(tmp_path / "modernbert", "modernbert")
    with pytest.raises(UserError, match="gives other vectors after export"):
        tinyhat.export(final_norm, tmp_path / "none", layers="1")
    assert not (tmp_path / "none").exists()


def test_old_type_strings_for_every_reader(tmp_path):
    model = save_tiny(tmp_path / "model", "bert")
    arguments = ["export", str(model), "--to", "sentence-transformers", "--out", str(tmp_path / "out"), "--normalize"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [(m["path"], m["type"]) for m in modules] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    model = save_tiny(tmp_path / "model", "bert")
    with pytest.raises(UserError, match="pools one layer"):
        tinyhat.export(model, tmp_path / "out", layers="all")
    with pytest.raises(UserError, match="did you mean 'sentence-transformers'"):
        tinyhat.export(model, tmp_path / "out", to="sentence_transformers")
    with pytest.raises(UserError, match="not empty"):
        tinyhat.export(model, model)
    monkeypatch.setitem(form.MODES, "mean", "pooling_mode_cls_token")
    monkeypatch.setattr(form, "pool_padded", lambda states, mask, pooling: states[:, 0])
    with pytest.raises(UserError, match="nothing is written"):
        tinyhat.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
