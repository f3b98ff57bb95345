"""Text without labels, from whatever the reader reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tinyhat.config import DataConfig
from tinyhat.data import corpus
from tinyhat.data.corpus import read_texts
from tinyhat.errors import UserError

ELTEC = Path(__file__).parents[3] / "shared" / "data" / "eltec_eng"
TEXTS = [f"the court has a market number {i}" for i in range(20)]


def lines(texts, **more):
    return "".join(json.dumps({"text": text} | more) + "\n" for text in texts)


def read(path, share=0.2, **changes):
    found = read_texts(DataConfig(path=str(path), **changes), share, 0)
    return sorted(found.train + found.validation), found


def test_files_of_every_kind(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(TEXTS))
    (tmp_path / "b.csv").write_text("id,text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(TEXTS)))
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(("id\tbody\n" + "".join(f"1\t{t}\n" for t in TEXTS)).encode()))
    for name in ("a.jsonl", "b.csv", "c.tsv.gz"):
        assert read(tmp_path / name)[0] == sorted(TEXTS)
    assert read(tmp_path / "b.csv", limit=7)[0] == sorted(TEXTS[:7])
    (tmp_path / "d.txt").write_text("\n".join(TEXTS) + "\n\nand more\n")
    whole, found = read(tmp_path / "d.txt")
    assert len(found.train) == len(found.validation) == 1  # one running text, its end is held out
    assert found.train[0] + found.validation[0] == "\n".join(TEXTS) + "\n\nand more"
    assert len(found.validation[0]) == pytest.approx(0.2 * len("".join(whole)), abs=40)


def test_labels_and_splits_are_no_matter(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(TEXTS[:10], label="x"))
    (tmp_path / "test.jsonl").write_text(lines(TEXTS[10:], label="y"))
    texts, found = read(tmp_path)
    assert texts == sorted(TEXTS[:10])
    assert "train.jsonl is read" in found.notes[0]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"q": t, "a": "yes"}) + "\n" for t in TEXTS))
    assert read(tmp_path / "pairs.jsonl", pair=("q", "a"))[0][0].endswith("0\nyes")
    assert read(tmp_path / "pairs.jsonl", text=("q",))[0] == sorted(TEXTS)


def test_a_folder_gives_its_tables_or_else_its_texts(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.txt").write_text(TEXTS[0])
    (tmp_path / "deep" / "two.txt").write_text(TEXTS[1])
    (tmp_path / "deep" / "picture.png").write_bytes(b"x")
    assert read(tmp_path, 0.4)[0] == sorted(TEXTS[:2])
    (tmp_path / "deep" / "table.jsonl").write_text(lines(TEXTS[5:9]))
    texts, found = read(tmp_path)
    assert texts == sorted(TEXTS[5:9])
    assert "left out beside them: two.txt, one.txt" in found.notes[0]


def test_the_hash_is_of_the_text_alone_and_in_order(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(TEXTS))
    (tmp_path / "b.jsonl").write_text(lines(TEXTS, other=1))
    (tmp_path / "c.jsonl").write_text(lines(TEXTS[::-1]))
    hashes = [read(tmp_path / f"{name}.jsonl")[1].sha256 for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hub_is_read_by_its_train_split(monkeypatch):
    asked = []

    def load(repository, subset=None):
        asked.append((repository, subset))
        return {"train": [{"text": text, "label": 0} for text in TEXTS]} if repository == "a/b" else {"test": []}

    monkeypatch.setattr(corpus, "load_hub", load)
    assert read("hub:a/b:en")[0] == sorted(TEXTS)
    assert asked == [("a/b", "en")]
    with pytest.raises(UserError, match="has no train split"):
        read("hub:c/d")


@pytest.mark.skipif(not ELTEC.is_dir(), reason="the novels are not on this machine")
def test_novels():
    texts, found = read(ELTEC, 0.02, limit=12)
    assert len(texts) >= 12
    assert max(map(len, texts)) > 100_000
    assert sum(map(len, found.validation)) == pytest.approx(0.02 * sum(map(len, texts)), rel=0.6)
