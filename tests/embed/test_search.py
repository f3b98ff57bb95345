"""Search finds what a plain loop finds, over every store, and refuses another model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny.corpus import tiny_rows
from tests.tiny.models import save_tiny
from typer.testing import CliRunner

import tinyhat
from tinyhat.cli import app
from tinyhat.embed import index as kinds
from tinyhat.embed.embedder import load_embedder
from tinyhat.embed.nearest import Bits, Scanned, _best
from tinyhat.embed.quantize import calibrate, encode
from tinyhat.embed.search import Index
from tinyhat.embed.store import read_store
from tinyhat.errors import UserError

QUERIES = ["fish and milk", "tax on trade", "the ship of state " * 30]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("search")
    model = save_tiny(folder / "model", "bert")
    rows = tiny_rows("single", 90)
    source = folder / "docs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedder = load_embedder(model, plan="fp32")
    vectors, queries = (embedder.embed(t) for t in ([row["text"] for row in rows], QUERIES))
    yield folder, model, source, [row["id"] for row in rows], vectors, queries
    torch.set_num_threads(threads)


def cosines(queries, vectors):
    unit = [a.astype(np.float64) / np.linalg.norm(a, axis=1, keepdims=True) for a in (queries, vectors)]
    return unit[0] @ unit[1].T


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".npy", "float32"), (".npy", "float16"), (".npy", "int8"), (".h5", "float32"), (".parquet", "int8"),
     (".safetensors", "float32")],
)  # fmt: skip
def test_exact_over_every_store(corpus, tmp_path, suffix, dtype):
    _folder, model, source, ids, vectors, queries = corpus
    out = tmp_path / f"v{suffix}"
    tinyhat.embed(model, source, out, plan="fp32", dtype=dtype, shards=2)
    expected = cosines(queries, vectors)
    found = tinyhat.search(out, QUERIES, k=7)
    for q, hits in enumerate(found):
        assert len(hits) == 7
        scores = [h.score for h in hits]
        assert scores == sorted(scores, reverse=True)
        tolerance = {"float32": 1e-5, "float16": 1e-3, "int8": 0.02}[dtype]
        assert [expected[q, ids.index(h.id)] for h in hits] == pytest.approx(scores, abs=tolerance)
        assert scores == pytest.approx(np.sort(expected[q])[::-1][:7], abs=tolerance)


def test_binary_rescored_finds_more_than_bits_alone():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(400, 64)).astype(np.float32)
    queries = (vectors[:30] + 0.9 * random.normal(size=(30, 64))).astype(np.float32)
    manifest = {"dtype": "binary", "width": 64}
    rows = Bits(list(range(400)), encode(vectors, "binary"), manifest)
    truth = np.argsort(-cosines(queries, vectors), axis=1)[:, :10]
    found, scores = rows.nearest(queries / np.linalg.norm(queries, axis=1, keepdims=True), 10)
    signs = np.where(vectors > 0, 1, -1)
    for q in range(30):
        assert scores[q] == pytest.approx(cosines(queries[q : q + 1], signs)[0, found[q]], abs=1e-5)
    hamming = ((queries[:, None] > 0) != (vectors[None] > 0)).sum(axis=2)
    alone = np.argsort(hamming, axis=1, kind="stable")[:, :10]

    def recall(rows):
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, truth, strict=True)])

    assert recall(found) > recall(alone) + 0.05


def test_int8_is_decoded_by_its_calibration():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(200, 16)).astype(np.float32) * np.geomspace(0.01, 100, 16, dtype=np.float32) + 3
    calibration = calibrate([vectors])
    manifest = {"dtype": "int8", "width": 16, "calibration": calibration}
    rows = Scanned(list(range(200)), encode(vectors, "int8", calibration), manifest)
    unit = vectors[:20] / np.linalg.norm(vectors[:20], axis=1, keepdims=True)
    found, scores = rows.nearest(unit, 1)
    assert found[:, 0].tolist() == list(range(20))
    assert scores[:, 0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["Flat", "HNSW32", "IVF"])
@pytest.mark.parametrize("normalize", [True, False])
def test_faiss_indexes_are_asked_themselves(corpus, tmp_path, monkeypatch, kind, normalize):
    pytest.importorskip("faiss")
    _folder, model, source, ids, vectors, queries = corpus
    monkeypatch.setattr(kinds, "FLAT", 10**6 if kind == "Flat" else 10)
    monkeypatch.setattr(kinds, "HNSW", 10**6 if kind == "HNSW32" else 20)
    monkeypatch.setattr(kinds, "describe_index", kinds.describe_index if kind != "IVF" else lambda n, d: "IVF2,Flat")
    out = tmp_path / "v.faiss"
    tinyhat.embed(model, source, out, plan="fp32", normalize=normalize)
    index = Index(out)
    assert index.measure == ("score" if normalize else "distance")
    if normalize:
        expected = np.sort(cosines(queries, vectors), axis=1)[:, ::-1]
    else:
        expected = np.sort(((queries[:, None] - vectors[None]) ** 2).sum(axis=2), axis=1)
    for q, hits in enumerate(index.search(QUERIES, 5)):
        assert [h.score for h in hits] == pytest.approx(expected[q, :5], rel=1e-3, abs=1e-3)
        assert len({h.id for h in hits}) == 5
        assert {h.id for h in hits} <= set(ids)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 4), st.integers(0, 9))
def test_the_best_are_those_of_a_stable_sort(k, columns, rows, seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 5, size=(rows, columns)).astype(np.float32)  # many ties
    numbers = np.broadcast_to(np.arange(columns), scores.shape)
    k = min(k, columns)
    found, best = _best(numbers, scores, k)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert found.tolist() == order.tolist()
    assert best.tolist() == np.take_along_axis(scores, order, axis=1).tolist()


def test_blocks_make_no_difference(monkeypatch):
    random = np.random.default_rng(2)
    vectors = random.normal(size=(100, 8)).astype(np.float32)
    rows = Scanned(list(range(100)), vectors, {"dtype": "float32", "width": 8})
    queries = vectors[:3]
    whole = rows.nearest(queries, 9)
    monkeypatch.setattr("tinyhat.embed.nearest.BLOCK", 7)
    parts = rows.nearest(queries, 9)
    assert whole[0].tolist() == parts[0].tolist()
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


def test_on_the_command_line_from_text_and_file(corpus, tmp_path):
    _folder, model, source, _ids, _vectors, _queries = corpus
    out = tmp_path / "v.npy"
    tinyhat.embed(model, source, out, plan="fp32")
    found = CliRunner().invoke(app, ["search", str(out), QUERIES[0], "--k", "3"])
    assert found.exit_code == 0, found.output
    line = json.loads(found.stdout)
    assert line["query"] == QUERIES[0]
    assert [h["id"] for h in line["hits"]] == [h.id for h in tinyhat.search(out, QUERIES[0], k=3)]
    file = tmp_path / "q.jsonl"
    file.write_text('{"id": "a", "text": "fish and milk"}\nbroken\n{"id": "b", "text": "tax"}\n')
    lines = [
        json.loads(x) for x in CliRunner().invoke(app, ["search", str(out), "--input", str(file)]).stdout.splitlines()
    ]
    assert [row["id"] for row in lines] == ["a", "1", "b"]
    best = lines[0]["hits"][:3]
    assert [h["id"] for h in best] == [h["id"] for h in line["hits"]]
    # the query is embedded beside another here: the last bits may differ
    assert [h["score"] for h in best] == pytest.approx([h["score"] for h in line["hits"]], abs=1e-5)
    assert "error" in lines[1]
    assert len(lines[2]["hits"]) == 10
    assert len(tinyhat.search(out, "milk", k=1000)) == 90


def test_the_choice_comes_back_from_the_manifest(corpus, tmp_path):
    _folder, model, source, _ids, _vectors, _queries = corpus
    choice = {"layers": "all", "pooling": "weighted", "combine": "mean", "weights": [0.2, 0.5, 0.3]}
    (tmp_path / "mix.json").write_text(json.dumps(choice))
    out = tmp_path / "v.npy"
    tinyhat.embed(model, source, out, plan="fp32", layers=f"best:{tmp_path / 'mix.json'}", max_tokens=20)
    (tmp_path / "mix.json").unlink()
    text = json.loads(source.read_text().splitlines()[4])["text"]
    best = tinyhat.search(out, text, k=1)[0]
    assert best.id == "d4"
    assert best.score == pytest.approx(1, abs=1e-5)
    assert read_store(out).manifest["layers"]["weights"] == [0.2, 0.5, 0.3]


@pytest.mark.parametrize("settings", [{"layers": "pooled"}, {"words": True}])
def test_classifier_vectors_and_words_are_searched_too(corpus, tmp_path, settings):
    _folder, model, source, *_ = corpus
    out = tmp_path / "v.npy"
    tinyhat.embed(model, source, out, plan="fp32", **settings)
    text = json.loads(source.read_text().splitlines()[4])["text"]
    hits = tinyhat.search(out, text, k=2)
    if "words" in settings:
        assert set(hits[0].id) == {"id", "begin", "end"}
    else:
        assert (hits[0].id, hits[0].score) == ("d4", pytest.approx(1, abs=1e-5))


def test_bad_input(corpus, tmp_path):
    _folder, model, source, _ids, _vectors, _queries = corpus
    out = tmp_path / "v.npy"
    tinyhat.embed(model, source, out, plan="fp32")
    other = save_tiny(tmp_path / "other", "bert", seed=7)
    with pytest.raises(UserError, match="made by another model than"):
        tinyhat.search(out, "milk", model=other)
    manifest = tmp_path / "v.npy.manifest.json"
    moved = json.loads(manifest.read_text()) | {"model": str(tmp_path / "gone")}
    manifest.write_text(json.dumps(moved))
    with pytest.raises(UserError, match="say where it lies with --model"):
        tinyhat.search(out, "milk")
    assert tinyhat.search(out, "milk", model=model)
    for arguments in ([str(out)], [str(out), "milk", "--input", str(source)]):
        found = CliRunner().invoke(app, ["search", *arguments])
        assert isinstance(found.exception, UserError)
        assert "give one of the two" in str(found.exception)
    with pytest.raises(UserError, match="does not exist"):
        tinyhat.search(tmp_path / "w.npy", "milk")
    pytest.importorskip("faiss")
    index = tmp_path / "v.faiss"
    tinyhat.embed(model, source, index, plan="fp32")
    index.write_bytes(index.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged or cut off"):
        tinyhat.search(index, "milk")


@pytest.mark.parametrize("suffix", ["npy", "faiss"])
def test_a_damaged_store_is_named(corpus, tmp_path, suffix):
    _folder, model, source, *_ = corpus
    out = tmp_path / f"v.{suffix}"
    tinyhat.embed(model, source, out, plan="fp32")
    ids, manifest = (tmp_path / f"v.{suffix}.{end}" for end in ("ids.jsonl", "manifest.json"))
    whole, facts = ids.read_text(), json.loads(manifest.read_text())
    ids.write_text(whole[:-4])
    with pytest.raises(UserError, match=r"ids\.jsonl is damaged or cut off"):
        tinyhat.search(out, "milk")
    ids.write_text(whole)
    for key in ("shards", "layers"):
        manifest.write_text(json.dumps({k: v for k, v in facts.items() if k != key}))
        with pytest.raises(UserError, match=f"lacks {key}: it was edited"):
            tinyhat.search(out, "milk")
    manifest.write_text('["somebody else"]')
    with pytest.raises(UserError, match="lacks everything"):
        tinyhat.search(out, "milk")
