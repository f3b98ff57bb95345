"""`tinyhat embed`: every store read back by its own library, killed at any moment, and what is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.tiny.corpus import tiny_rows
from tests.tiny.models import save_tiny

import tinyhat
from tinyhat.cli import main
from tinyhat.embed import index, write
from tinyhat.embed.ahead import cut
from tinyhat.embed.embedder import load_embedder
from tinyhat.embed.quantize import decode
from tinyhat.embed.store import read_store
from tinyhat.errors import UserError

FORMATS = ("npy", "h5", "parquet", "safetensors", "faiss")
COUNT = 70


@pytest.fixture
def source(tmp_path):
    rows = [{"id": row["id"], "text": row["text"]} for row in tiny_rows("multi", COUNT)]
    rows[3]["text"], rows[9]["id"] = "law " * 200, "ä"
    lines = [json.dumps(row) for row in rows]
    lines.insert(5, '{"id": "empty", "text": ""}')
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "in.jsonl"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(write, "PART", 16)


def embed(bert, source, *outs, **settings):
    said, folder = [], Path(source).parent
    manifest = tinyhat.embed(bert, source, [folder / out for out in outs], say=said.append, **settings)
    return manifest, said


def texts_of(source):
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    return [row["id"] for row in rows if row["text"]], [row["text"] for row in rows if row["text"]]


def test_every_store_holds_the_same_rows_for_its_own_library(bert, source):
    import faiss
    import h5py
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    folder = source.parent
    manifest, said = embed(bert, source, *(f"v.{f}" for f in FORMATS), plan="fp32", exact=True)
    ids, texts = texts_of(source)
    expected = load_embedder(bert, plan="fp32", exact=True).embed(texts)
    mapped = np.load(folder / "v.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped, expected)
    with h5py.File(folder / "v.h5") as file:
        np.testing.assert_array_equal(file["vectors"][:], expected)
        assert [name.decode() for name in file["ids"]] == ids
        assert json.loads(file.attrs["pooling"]) == "mean"
        assert file["vectors"].compression == "gzip"
    table = pq.read_table(folder / "v.parquet")
    assert table.schema.field("vector").type.list_size == 32
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), expected)
    assert table["id"].to_pylist() == ids
    np.testing.assert_array_equal(load_file(folder / "v.safetensors")["vectors"], expected)
    found = faiss.read_index(str(folder / "v.faiss"))
    np.testing.assert_array_equal(found.reconstruct_n(0, COUNT), expected)
    assert found.search(expected, 1)[1][:, 0].tolist() == list(range(COUNT))
    for suffix in FORMATS:
        store = read_store(folder / f"v.{suffix}")
        np.testing.assert_array_equal(store.vectors, expected)
        assert store.ids == ids
        assert store.manifest["model_sha256"] == manifest["model_sha256"]
    assert any("1 of 71 rows" in line for line in said)
    assert not list(folder.glob("*.parts"))
    assert manifest["shards"][0]["rows"] == COUNT
    assert isinstance(read_store(folder / "v.npy").vectors, np.memmap)


@pytest.mark.parametrize(("dtype", "columns"), [("float16", 32), ("int8", 32), ("binary", 4)])
def test_smaller_types_come_back(bert, source, dtype, columns):
    embed(bert, source, "v.npy", "v.h5", "v.parquet", "v.safetensors", dtype=dtype, shards=3, plan="fp32", exact=True)
    expected = load_embedder(bert, plan="fp32", exact=True).embed(texts_of(source)[1])
    for suffix in FORMATS[:4]:
        store = read_store(source.parent / f"v.{suffix}")
        assert store.vectors.shape == (COUNT, columns)
        back = decode(store.vectors, store.manifest)
        if dtype == "float16":
            np.testing.assert_allclose(back, expected, rtol=1e-3)
        elif dtype == "int8":
            step = np.array(store.manifest["calibration"]["step"])
            assert (np.abs(back - expected) <= step * 0.501).all()
        else:
            np.testing.assert_array_equal(back > 0, expected > 0)
    assert len(list(source.parent.glob("v-0000?-of-00003.npy"))) == 3


def test_words_have_rows_of_their_own(bert, source):
    manifest, _ = embed(bert, source, "w.npy", "w.parquet", words=True, pooling="first", plan="fp32", exact=True)
    ids, texts = texts_of(source)
    words = load_embedder(bert, plan="fp32", exact=True).words(texts, "first")
    store = read_store(source.parent / "w.npy")
    np.testing.assert_array_equal(store.vectors, np.concatenate([w.vectors for w in words]))
    assert store.ids[0] == {"id": ids[0], "begin": 0, "end": int(words[0].spans[0][1])}
    assert len(store.ids) == sum(len(w.spans) for w in words) == manifest["rows"]


def test_the_deviation_from_exact_is_measured_and_said(bert, source):
    manifest, said = embed(bert, source, "v.npy", plan="fp32")
    exact = load_embedder(bert, plan="fp32", exact=True).embed(texts_of(source)[1][:16])
    found = read_store(source.parent / "v.npy").vectors[:16]
    off = (np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)).max()
    assert manifest["deviation"] == pytest.approx(off, rel=1e-3, abs=1e-9)
    assert any("largest deviation from --exact over 16 documents" in line for line in said)


def test_parts_hold_so_many_characters(bert, source, monkeypatch):
    """What is in memory at once is bounded, however long the documents are."""
    assert list(cut(["aa", "b", "c" * 9, "d", "e", "f"], 2, 3, len)) == [["aa", "b"], ["c" * 9], ["d", "e"], ["f"]]
    texts, sizes, whole = texts_of(source)[1], [], write.write_part

    def write_part(embedder, parts, part, ids, *rest):
        sizes.append(len(ids))
        whole(embedder, parts, part, ids, *rest)

    monkeypatch.setattr(write, "CHARACTERS", 500)
    monkeypatch.setattr(write, "WORD_CHARACTERS", 100)
    monkeypatch.setattr(write, "write_part", write_part)
    _, said = embed(bert, source, "v.npy", plan="fp32")
    assert sizes == [len(part) for part in cut(texts, 16, 500, len)]
    assert len(set(sizes)) > 2
    assert any(f"over {sizes[0]} documents" in line for line in said)
    expected = load_embedder(bert, plan="fp32").embed(texts)
    np.testing.assert_allclose(read_store(source.with_name("v.npy")).vectors, expected, atol=1e-5)
    sizes.clear()
    assert embed(bert, source, "w.npy", words=True)[0]["part_characters"] == 100
    assert sizes == [len(part) for part in cut(texts, 16, 100, len)]


def hashes(folder, name):
    return {p.name: p.read_bytes() for p in folder.glob(f"{name}*") if p.is_file()}


@pytest.mark.parametrize("stop", [0, 2, 4, "assembly"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(bert, source, monkeypatch, stop):
    folder, outs = source.parent, [f"v.{f}" for f in FORMATS]
    (folder / "whole").mkdir()
    tinyhat.embed(bert, source, [folder / "whole" / out for out in outs])
    with monkeypatch.context() as patch:
        if stop == "assembly":
            whole = write.assemble
            done = []

            def assemble(*arguments):
                if len(done) == 2:
                    raise KeyboardInterrupt
                done.append(whole(*arguments))
                return done[-1]

            patch.setattr(write, "assemble", assemble)
        else:
            whole_part = write.write_part

            def write_part(embedder, parts, part, *rest):
                if part == stop:
                    raise KeyboardInterrupt
                whole_part(embedder, parts, part, *rest)

            patch.setattr(write, "write_part", write_part)
        with pytest.raises(KeyboardInterrupt):
            embed(bert, source, *outs)
    with pytest.raises(UserError, match=r"--resume|already"):
        embed(bert, source, *outs)
    _, said = embed(bert, source, *outs, resume=True)
    assert said[0] == f"{5 if stop == 'assembly' else stop} of 5 parts are there already"
    assert hashes(folder, "v.") == hashes(folder / "whole", "v.")
    _, said = embed(bert, source, *outs, resume=True)
    assert said == ["everything is there already"]


VICTIM = """
import os, signal, sys
from tinyhat.cli import main
from tinyhat.embed import parts, write

def torn(path, *rest, whole=parts.write_npy):
    whole(path, *rest)
    if "part-000002" in path.name:
        os.truncate(path, 200)
        os.kill(os.getpid(), signal.SIGKILL)

write.PART, parts.write_npy = 16, torn
main(sys.argv[1:])
"""


def test_killed_in_the_middle_of_a_file_and_resumed(bert, source):
    tmp_path = source.parent
    tinyhat.embed(bert, source, tmp_path / "a.npy")
    command = [sys.executable, "-c", VICTIM, "embed", str(bert), str(source), "--to", str(tmp_path / "b.npy")]
    victim = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, check=False)
    assert victim.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("b.npy.parts/.part-000002.npy.*.tmp"))
    said = []
    tinyhat.embed(bert, source, tmp_path / "b.npy", resume=True, say=said.append)
    assert said[0] == "2 of 5 parts are there already"
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert (tmp_path / "a.npy.ids.jsonl").read_bytes() == (tmp_path / "b.npy.ids.jsonl").read_bytes()


def test_what_is_refused_and_nothing_is_overwritten(bert, source, tmp_path, monkeypatch):
    def refused(message, *outs, **settings):
        with pytest.raises(UserError, match=message):
            embed(settings.pop("model", bert), settings.pop("source", source), *(outs or ("v.npy",)), **settings)

    refused("text is no place for vectors", "v.csv")
    refused("no format of embeddings", "v.bin")
    refused("an index compresses|index compresses by itself", "v.faiss", dtype="int8")
    refused("an index is one file", "v.faiss", shards=2)
    refused("did you mean 'float32'", dtype="float23")
    refused("names a file twice", "v.npy", "v.npy")
    with pytest.raises(UserError, match="give a file, not stdin"):
        tinyhat.embed(bert, "-", tmp_path / "v.npy")
    refused("first, last, mean, max", words=True, pooling="cls")
    refused("choose other layers", words=True, layers="pooled")
    other = source.with_name("other.jsonl")
    other.write_text('{"id": "1", "name": "law"}\n')
    refused("has no column that is plainly the text column", source=other)
    other.write_text('{"id": "1", "text": ""}\n')
    refused("has no document that can be read", source=other)
    assert not list(source.parent.glob("v*"))
    (source.parent / "v.npy").write_bytes(b"mine")
    refused("v.npy is there already")
    refused("v.npy is there already", resume=True)
    assert (source.parent / "v.npy").read_bytes() == b"mine"
    embed(bert, source, "u.npy")
    wide = save_tiny(tmp_path / "wide", "bert", hidden_size=48)
    before = hashes(source.parent, "u.")
    refused("is of another model", "u.npy", model=wide, resume=True)
    refused("is of another pooling", "u.npy", resume=True, pooling="max")
    refused("is of another dtype", "u.npy", resume=True, dtype="int8")
    refused("is of 1 files, not 2", "u.npy", resume=True, shards=2)
    assert hashes(source.parent, "u.") == before


def stop_before_assembly(bert, source, monkeypatch):
    """Leave v.npy as a run does that is stopped when all its parts are there."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(bert, source, "v.npy")


def test_a_resumed_run_replaces_only_what_it_wrote_itself(bert, source, monkeypatch):
    stop_before_assembly(bert, source, monkeypatch)
    mine = source.with_name("mine.npy")
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"mine\.npy is there already"):
        embed(bert, source, "v.npy", "mine.npy", resume=True)
    assert mine.read_bytes() == b"mine"
    source.with_name("v.npy").write_bytes(b"half")  # as a kill between file and manifest leaves it
    embed(bert, source, "v.npy", "new.h5", resume=True)
    assert len(read_store(source.with_name("new.h5")).ids) == len(read_store(source.with_name("v.npy")).ids) == COUNT


def test_vectors_that_are_not_finite_are_refused_with_their_document(bert, source, monkeypatch):
    whole = write.Embedder.embed_windows

    def overflows(*arguments):
        vectors = whole(*arguments)
        vectors[2, 5] = np.inf
        return vectors

    monkeypatch.setattr(write.Embedder, "embed_windows", overflows)
    with pytest.raises(UserError, match="the vector of 'd2' holds numbers that are not finite"):
        embed(bert, source, "v.npy")
    assert not (source.parent / "v.npy").exists()


def test_no_file_of_a_store_is_empty(bert, source, tmp_path):
    source.write_text("law\nfish\nmilk\n")
    few = source.rename(tmp_path / "few.txt")
    with pytest.raises(UserError, match=r"--shards 4: .* has 3 documents"):
        embed(bert, few, "v.h5", shards=4)
    embed(bert, few, "v.h5", shards=3)
    assert len(read_store(tmp_path / "v.h5").vectors) == 3
    with pytest.raises(UserError, match="--shards 4: there are 3 rows"):
        embed(bert, few, "w.parquet", words=True, shards=4)
    few.write_text("\u200b\n")  # a document, and no word
    with pytest.raises(UserError, match="no document has a word"):
        embed(bert, few, "x.npy", words=True)


@pytest.mark.parametrize("suffix", ["NPY", "H5", "Faiss"])
def test_suffixes_in_capitals_are_those_formats(bert, source, suffix):
    embed(bert, source, f"v.{suffix}", f"w.{suffix.lower()}", normalize=True)
    found, expected = (read_store(source.parent / name) for name in (f"v.{suffix}", f"w.{suffix.lower()}"))
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert ("index" in found.manifest) == (suffix == "Faiss")


def test_parts_of_another_width_or_damaged_are_named(bert, source, monkeypatch):
    stop_before_assembly(bert, source, monkeypatch)
    part = source.parent / "v.npy.parts" / "part-000001.npy"
    np.save(part, np.zeros((16, 7), np.float32))
    with pytest.raises(UserError, match="vectors of 7 numbers, these have 32"):
        embed(bert, source, "v.npy", resume=True)
    part.write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged"):
        embed(bert, source, "v.npy", resume=True)


def test_a_full_disk_is_one_sentence_and_resumes(bert, source, monkeypatch, capsys):
    monkeypatch.setattr(write, "PART", 1024)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (6000, 14000):  # of a file: stops in a part (9 KB), then in the HDF5 file
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            with pytest.raises(SystemExit) as stopped:
                main(["embed", str(bert), str(source), "--to", str(source.with_name("v.h5")), "--resume"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert stopped.value.code == 2
        assert "the disk is full" in capsys.readouterr().err.splitlines()[-1]
        assert not (source.parent / "v.h5").exists()
    embed(bert, source, "v.h5", resume=True)
    assert len(read_store(source.parent / "v.h5").ids) == COUNT


def test_stores_that_do_not_belong_together(bert, source):
    folder = source.parent
    embed(bert, source, "v.npy")
    with pytest.raises(UserError, match=r"did you mean 'v\.npy'"):
        read_store(folder / "w.npy")
    np.save(folder / "v.npy", np.zeros((3, 32)))
    with pytest.raises(UserError, match="do not belong together"):
        read_store(folder / "v.npy")
    (folder / "v.npy").write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged or cut off"):
        read_store(folder / "v.npy")
    (folder / "v.npy").unlink()
    with pytest.raises(UserError, match="is missing, a part of"):
        read_store(folder / "v.npy")


def test_indexes_of_every_size_are_the_same_twice(tmp_path, monkeypatch):
    import faiss

    vectors = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)

    def chunks():
        return iter(np.split(vectors, 3))

    kinds = [index.describe_index(n, 384) for n in (10, 100_000, 1_000_000, 50_000_000)]
    assert kinds == ["Flat", "HNSW32", "IVF4096,Flat", "IVF32768,PQ96"]
    for flat, hnsw, ivf, kind in (
        (5000, 0, 0, faiss.IndexFlat),
        (0, 5000, 0, faiss.IndexHNSWFlat),
        (0, 0, 5000, faiss.IndexIVFFlat),
        (0, 0, 0, faiss.IndexIVFPQ),
    ):
        for name, value in (("FLAT", flat), ("HNSW", hnsw), ("IVF", ivf)):
            monkeypatch.setattr(index, name, value)
        for name in ("a", "b"):
            index.write_index(tmp_path / name, 600, 8, chunks, normalized=False)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        found = faiss.read_index(str(tmp_path / "a"))
        assert isinstance(found, kind)
        assert found.ntotal == 600
        _, near = found.search(vectors[:200], 10)
        assert np.mean([i in row for i, row in enumerate(near)]) > 0.5


def test_the_look_ahead_ends_with_its_reader():
    from tinyhat.embed.ahead import ahead

    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    reader = ahead(items())
    assert [next(reader), next(reader)] == [0, 1]
    reader.close()
    assert len(made) < 8

    def broken():
        yield 1
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        list(ahead(broken()))
