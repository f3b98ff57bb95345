"""`tinyhat layers`: features equal embeddings, the mix finds the layer that knows, the choice is what embed reads."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.tiny.corpus import write_tiny
from tests.tiny.models import save_tiny
from typer.testing import CliRunner

import tinyhat
from tinyhat.cli import app
from tinyhat.data.dataset import Split
from tinyhat.embed.choice import POOLINGS, read_choice
from tinyhat.embed.embedder import load_embedder
from tinyhat.embed.features import layer_features
from tinyhat.embed.layers import conclusions, probe_features, render
from tinyhat.embed.mix import learn_mix, mixed
from tinyhat.errors import UserError
from tinyhat.evaluate.probe import Probe
from tinyhat.types import Targets


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), "bert")


def test_features_are_what_embedding_gives(model, tmp_path):
    texts = ["milk", "law and order " * 3, "fish tax " * 70, ""]
    features = layer_features(load_embedder(model, layers="all", plan="fp32"), texts, tmp_path / "f.npy")
    assert features.shape == (3, len(POOLINGS), 4, 32)
    for k in range(3):
        for p, pooling in enumerate(POOLINGS):
            expected = load_embedder(model, layers=str(k), pooling=pooling, plan="fp32").embed(texts)
            rows = [0, 1, 3] if pooling == "max" else [0, 1, 2, 3]  # overlaps of windows are not averaged before max
            np.testing.assert_allclose(features[k, p, rows], expected[rows], atol=2e-5)


def made_up(task: str, knowing: int, layers: int = 4, count: int = 400):
    """Features of which one layer knows the answers and the others are noise."""
    random = np.random.default_rng(5)
    features = random.normal(size=(layers, count, 6)).astype(np.float32)
    scores = features[knowing] @ random.normal(size=(6, 3))
    if task == "single":
        targets = Targets("single", 3, scores.argmax(axis=1))
    elif task == "regression":
        targets = Targets("regression", 3, (1e4 + 300 * scores).astype(np.float32))
    else:
        indptr = np.concatenate([[0], np.cumsum((scores > 0).sum(axis=1))])
        targets = Targets("multi", 3, np.nonzero(scores > 0)[1], indptr)
    return features, targets


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_the_mix_finds_the_layer_that_knows(task):
    features, targets = made_up(task, knowing=2)
    weights = learn_mix(features, targets, np.arange(300))
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert weights[2] > 0.6 > max(w for i, w in enumerate(weights) if i != 2) * 2
    expected = np.tensordot(weights, features.astype(np.float64), axes=1)
    np.testing.assert_allclose(mixed(features, weights), expected, atol=1e-5)
    assert learn_mix(features, targets, np.arange(300)) == weights


def test_the_table_names_the_best_and_the_mix_is_measured_where_it_was_not_learned():
    features, targets = made_up("single", knowing=1)
    many = np.stack([features] * len(POOLINGS), axis=1)
    many[:, POOLINGS.index("cls")] = 0
    split = Split("train", [str(i) for i in range(400)], [""] * 400, targets)
    table = probe_features(many, split, Probe(targets), seed=0)
    one = max((c for c in table.candidates if c.layers.isdigit()), key=lambda c: c.probed.score)
    assert (one.layers, one.pooling) == ("1", "mean")
    assert table.best in (one, table.mix)
    assert table.mix.probed.score > 0.9
    assert len(table.candidates) == 4 * len(POOLINGS) + 3
    text = render(table)
    assert f"{table.best.probed.score:.4f}*" in text
    assert len(text.splitlines()) == 2 + 4 + 3
    said = conclusions(table)
    assert said[0].startswith(f"best: {table.best.name}, accuracy {table.best.probed.score:.4f}")
    assert "more than chance" in said[1]
    shuffled = Targets("single", 3, np.random.default_rng(0).permutation(targets.values))
    by_chance = probe_features(many, replace(split, targets=shuffled), Probe(shuffled), seed=0)
    assert by_chance.mix.probed.score < 0.5, "a mix learned on the fold it is measured on would look better than chance"


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_the_verb_writes_a_choice_that_embed_reads(model, tmp_path, task):
    data = write_tiny(tmp_path / "data", task, train=40, dev=10, test=0)
    said: list[str] = []
    settings = {"data.target": ["a", "b"]} if task == "regression" else {}
    table = tinyhat.layers(model, data, tmp_path / "out", settings=settings, say=said.append)
    choice = read_choice(tmp_path / "out")
    assert (choice["layers"], choice["pooling"]) == (table.best.layers, table.best.pooling)
    assert len(choice["table"]) == len(table.candidates)
    assert (tmp_path / "out" / "layers.png").stat().st_size > 10_000
    assert any(f"--layers best:{tmp_path / 'out'}" in line for line in said)
    best = load_embedder(model, layers=f"best:{tmp_path / 'out'}")
    assert best.pooling == table.best.pooling
    mix = load_embedder(model, layers=f"best:{tmp_path / 'out' / 'mix.json'}", plan="fp32")
    assert mix.layers.weights == table.mix.weights
    parts = [
        load_embedder(model, layers=str(k), pooling=mix.pooling, plan="fp32").embed(["milk law"]) for k in range(3)
    ]
    expected = sum(w * v for w, v in zip(mix.layers.weights, parts, strict=True))
    np.testing.assert_allclose(mix.embed(["milk law"]), expected, atol=1e-5)


def test_on_the_command_line(model, tmp_path):
    data = write_tiny(tmp_path / "data", "single", train=30, dev=5, test=0)
    found = CliRunner().invoke(app, ["layers", str(model), str(data), "--out", str(tmp_path / "o"), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["metric"] == "accuracy"


def test_bad_input(model, tmp_path):
    data = write_tiny(tmp_path / "data", "single", train=30, dev=5, test=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="not empty: name a new folder"):
        tinyhat.layers(model, data, tmp_path / "full")
    few = write_tiny(tmp_path / "few", "single", train=6, dev=5, test=0)
    with pytest.raises(UserError, match="10 documents"):
        tinyhat.layers(model, few, tmp_path / "out")
    pairs = {"data.pair": ["text", "id"], "data.label": "label"}
    with pytest.raises(UserError, match="text pairs"):
        tinyhat.layers(model, data, tmp_path / "out", settings=pairs)
    assert not (tmp_path / "out").exists()


def test_a_choice_belongs_to_its_model_and_its_length(model, tmp_path):
    choice = {"layers": "1", "pooling": "max", "max_tokens": 20, "model_sha256": load_embedder(model).fingerprint()}
    (tmp_path / "layers.json").write_text(json.dumps(choice))
    assert load_embedder(model, layers=f"best:{tmp_path}").max_tokens == 20
    assert load_embedder(model, layers=f"best:{tmp_path}", max_tokens=30).max_tokens == 30
    other = save_tiny(tmp_path / "other", "bert", seed=5)
    with pytest.raises(UserError, match="was chosen for another model than"):
        load_embedder(other, layers=f"best:{tmp_path}")
    for damage in ({"weights": 3}, {"weights": ["a"]}, {"combine": "sum"}, {"max_tokens": "20"}):
        (tmp_path / "layers.json").write_text(json.dumps(choice | damage))
        with pytest.raises(UserError, match=f"is damaged: its {next(iter(damage))}"):
            load_embedder(model, layers=f"best:{tmp_path}")
