"""The check against slow references: exact Jaccard similarity, plain counting, the tokenizer itself."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tinyhat.config import DataConfig
from tinyhat.data.check import check_dataset, render_check
from tinyhat.data.duplicates import SHINGLE, SIMILAR, clusters, signatures, similar_pairs
from tinyhat.data.read import read_dataset

WORDS = [f"w{i}" for i in range(400)]


def shingles(text):
    words = text.lower().split()
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def corpus(seed):
    """Texts of which many are edits of one another."""
    random = np.random.RandomState(seed)
    texts = []
    for _ in range(40):
        words = random.choice(WORDS, random.randint(1, 120)).tolist()
        texts.append(" ".join(words))
        for edits in (0, 1, 3, 10):
            changed = list(words)
            for place in random.randint(len(words), size=edits):
                changed[place] = "new"
            texts.append(" ".join(changed))
    return [texts[i] for i in random.permutation(len(texts))]


def test_signatures_estimate_jaccard_similarity():
    texts = corpus(0)
    signature = signatures(texts)
    pairs = np.random.RandomState(1).randint(len(texts), size=(4000, 2))
    exact = np.array([jaccard(texts[i], texts[j]) for i, j in pairs])
    estimate = (signature[pairs[:, 0]] == signature[pairs[:, 1]]).mean(axis=1)
    assert np.abs(estimate - exact).max() < 0.3
    assert abs((estimate - exact)[(exact > 0) & (exact < 1)].mean()) < 0.03


def test_similar_pairs_find_what_is_similar_and_nothing_else():
    texts = corpus(2)
    found = {tuple(pair) for pair in similar_pairs(signatures(texts)).tolist()}
    exact = {(i, j): jaccard(texts[i], texts[j]) for i in range(len(texts)) for j in range(i + 1, len(texts))}
    assert {pair for pair, similarity in exact.items() if similarity > SIMILAR + 0.15} <= found
    assert all(exact[pair] > SIMILAR - 0.2 for pair in found)


def test_signatures_do_not_depend_on_order_chunks_or_company(monkeypatch):
    texts = [*corpus(3), "", "  \n", "One", "one two three four five"]
    signature = signatures(texts)
    backwards = signatures(texts[::-1])[::-1]
    np.testing.assert_array_equal(signature, backwards)
    monkeypatch.setattr("tinyhat.data.duplicates.CHUNK_WORDS", 50)
    np.testing.assert_array_equal(signature, signatures(texts))
    np.testing.assert_array_equal(signatures(texts[5:6])[0], signature[5])
    assert not np.isin(similar_pairs(signature), [len(texts) - 4, len(texts) - 3]).any(), "texts without words"


def test_a_large_family_is_one_cluster_with_few_pairs():
    base = " ".join(WORDS[:200])
    signature = signatures([f"{base} nr {i}" for i in range(1500)] + ["quite another text about five things"])
    pairs = similar_pairs(signature)
    assert len(pairs) < 1500 * 9 * 16 < 1500 * 1499 / 2
    assert np.bincount(clusters(1501, pairs)).max() == 1500


@pytest.fixture
def tokenizer():
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def dataset(folder, train, dev, **settings):
    for name, rows in (("train", train), ("dev", dev)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset(DataConfig(path=str(folder), **settings))


def row(text, *labels):
    return {"text": text, "labels": list(labels)}


LONG = " ".join(WORDS[:100])
TRAIN = [row("one  two", "a"), row("one two", "b"), row(LONG, "a", "b"), row("!?", "a"), row("three", "c"), row("x")]
DEV = [row("one two", "a"), row(LONG + " end", "d"), row("unique here", "b", "c")]


def test_the_whole_report(tmp_path, tokenizer):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    data = dataset(tmp_path, TRAIN, DEV, label_list=str(tmp_path / "labels.txt"))
    tokenizer.enable_truncation(3)
    report = check_dataset(data, tokenizer, frequent=2, max_tokens=102)
    assert tokenizer.truncation["max_length"] == 3, "the caller's tokenizer stays as it was"
    assert report == json.loads(json.dumps(report, allow_nan=False))
    assert report["labels"]["bands"] == {"frequent": 2, "few": 1, "zero": 1}
    assert report["labels"]["counts"] == {"a": 3, "b": 2, "c": 1, "d": 0}
    train, dev = report["splits"]["train"], report["splits"]["dev"]
    assert (train["documents"], train["empty"], dev["empty"]) == (6, 1, 0)
    assert train["labels_per_document"] == {"mean": 1.0, "min": 0, "max": 2, "median": 1, "none": 1}
    assert dev["bands"] == {"frequent": 2, "few": 1, "zero": 1}
    assert dev["unseen"] == {"labels": 1, "answers": 1}
    assert (train["exact_duplicates"], train["near_duplicates"], dev["near_duplicates"]) == (1, 1, 0)
    assert train["length"] | {"p95": 0, "p99": 0} == {
        "unit": "tokens", "mean": 17.8333, "min": 1, "max": 100, "p50": 1.5, "p90": 51, "p95": 0, "p99": 0,
    }  # fmt: skip
    # 100 tokens and two special ones fit into 102, 101 do not
    assert train["cut"] == {"max_tokens": 102, "documents": 0, "share": 0}
    assert dev["cut"] == {"max_tokens": 102, "documents": 1, "share": 0.3333}
    assert report["leakage"] == {"train-dev": {"exact": 1, "near": 2, "examples": [["0", "0"], ["2", "1"]]}}
    assert report["conflicts"] == {"documents": 3, "examples": [[["train", "0"], ["train", "1"]]]}


def test_the_table_names_every_problem(tmp_path):
    text = render_check(check_dataset(dataset(tmp_path, TRAIN, DEV)))
    for part in [
        "documents",
        "words, median",
        "leakage: documents of dev that are in train: 1 exactly, 2",
        "conflicts",
    ]:
        assert part in text
    assert "labels outside the label space (d)" in text


def test_regression_and_pairs(tmp_path, tokenizer):
    rows = [{"text": "a b", "other": f"c {i}", "v": i / 2} for i in range(4)]
    data = dataset(tmp_path, rows, rows[:2], pair=("text", "other"), target=("v",))
    report = check_dataset(data, tokenizer, max_tokens=6)
    assert report["labels"] is None
    assert report["splits"]["train"]["targets"] == {"v": {"mean": 0.75, "min": 0, "max": 1.5, "std": 0.559}}
    assert report["splits"]["train"]["cut"]["documents"] == 4, "2 + 2 tokens and three special ones"
    assert report["leakage"]["train-dev"]["exact"] == 2
    assert "v, mean (std)" in render_check(report)
