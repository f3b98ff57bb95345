"""Runs that read windows: every vote through train, save, load and predict; a very long document."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny.corpus import tiny_dataset, write_tiny
from tests.tiny.models import save_tiny

import tinyhat
from tinyhat.config import build_config
from tinyhat.errors import UserError
from tinyhat.pipeline import train_dataset
from tinyhat.predict import load
from tinyhat.run import process_memory_gb

VOTES = {
    "mean": "multi", "mean_probability": "single", "max": "multi", "top_k": "regression", "majority": "single",
    "attention": "regression", "transformer": "multi",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def settings(model: object, **changes: object) -> dict[str, object]:
    return {
        "encoder.model": str(model), "reading.max_tokens": 16, "reading.strategy": "windows", "train.max_steps": 3,
        "train.batch_size": 8, "train.plan": "fp32", "evaluate.baseline": False, "evaluate.bootstrap": 0,
    } | changes  # fmt: skip


@pytest.mark.parametrize("vote", list(VOTES))
def test_a_loaded_run_scores_as_the_trained_one_and_tells_what_it_read(tmp_path, vote):
    task = VOTES[vote]
    model = save_tiny(tmp_path / "m", "bert")
    dataset = tiny_dataset(tmp_path / "data", task, train=24, dev=12, test=0)
    learn = "windows" if vote in ("majority", "mean") else "document"
    config = build_config(None, settings(model, **{"reading.vote": vote, "reading.learn": learn}))
    run = train_dataset(config, dataset, tmp_path / "run", say=lambda _: None)
    from tinyhat.evaluate.scores import read_scores

    saved = read_scores(run.scores, "dev").logits
    classifier = load(run.path)
    texts = dataset.splits["dev"].texts
    np.testing.assert_allclose(classifier.logits(texts), saved, rtol=1e-4, atol=1e-4)
    results = classifier.predict(texts)
    for result in results:
        assert result["tokens_read"] == result["tokens_total"]
        assert result["windows"] == max(1, -(-result["tokens_total"] // 14))
        assert set(result["spoke"]) == set(result["labels"])
        assert all(0 <= w < result["windows"] for w in result["spoke"].values())
    assert max(r["windows"] for r in results) > 1
    for result in classifier.predict(texts[:4], top_k=2):
        assert set(result["spoke"]) == {*result["labels"], *result["scores"]}
    learned = vote in ("attention", "transformer")
    assert (run.model / "vote.safetensors").exists() == learned
    if learned:
        names = json.loads((run.model / "config.json").read_text())["architectures"]
        assert names == ["BertForSequenceClassification"]
        from safetensors import safe_open

        with safe_open(run.model / "model.safetensors", "pt") as weights:
            assert not any("vote" in name for name in weights.keys())  # noqa: SIM118
        whole = (run.model / "vote.safetensors").read_bytes()
        (run.model / "vote.safetensors").write_bytes(whole[:-4] + b"abcd")
        with pytest.raises(UserError, match="sha256 differs"):
            load(run.path)


def test_windows_of_documents_that_fit_one_give_exactly_the_plain_result(tmp_path):
    model = save_tiny(tmp_path / "m", "bert")
    dataset = tiny_dataset(tmp_path / "data", "multi", train=24, dev=12, test=0)
    short = {n: replace(s, texts=[" ".join(t.split()[:6]) for t in s.texts]) for n, s in dataset.splits.items()}
    dataset = replace(dataset, splits=short)
    logits = []
    for strategy in ("head", "windows"):
        changes = {"reading.max_tokens": 60, "reading.strategy": strategy}
        config = build_config(None, settings(model, **changes))
        run = train_dataset(config, dataset, tmp_path / strategy, say=lambda _: None)
        logits.append(load(run.path).logits(dataset.splits["dev"].texts))
    assert (logits[0] == logits[1]).all()


def test_200000_tokens_in_small_packs_and_an_empty_document(tmp_path):
    model = save_tiny(tmp_path / "m", "bert")
    dataset = tiny_dataset(tmp_path / "data", "multi", train=24, dev=12, test=0)
    changes = {"reading.max_tokens": 64, "reading.vote": "attention"}
    run = train_dataset(build_config(None, settings(model, **changes)), dataset, tmp_path / "run", say=lambda _: None)
    classifier = load(run.path)
    phrase = classifier.predict(["law court market fish "])[0]["tokens_total"]
    count = -(-200_000 // phrase)
    seen: list[int] = []
    forward = classifier.predictor.encoder.model.forward

    def watched(*args: object, **inputs: object) -> object:
        seen.append(inputs["input_ids"].numel())
        return forward(*args, **inputs)

    classifier.predictor.encoder.model.forward = watched
    before = process_memory_gb()
    with torch.no_grad():
        (long, empty) = classifier.predict(["law court market fish " * count, ""])
    assert long["tokens_read"] == long["tokens_total"] >= 200_000
    assert long["windows"] == -(-long["tokens_total"] // 62)
    assert max(seen) <= classifier.predictor.pack_tokens, "no pack grows with the document"
    assert process_memory_gb() - before < 0.3, "tokens and window vectors only"
    assert (empty["windows"], empty["tokens_read"]) == (1, 0)


def test_an_empty_row_of_a_file_gets_a_clear_answer(tmp_path):
    model = save_tiny(tmp_path / "m", "bert")
    run = tinyhat.train(write_tiny(tmp_path / "data", "single", 24, 12, 0), tmp_path / "run", settings(model),
                        say=lambda _: None)  # fmt: skip
    source = tmp_path / "new.jsonl"
    source.write_text('{"id": "a", "text": ""}\n{"id": "b", "text": "fish"}\n')
    assert tinyhat.predict(run.path, str(source), tmp_path / "out.jsonl") == 1
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[1]["windows"] == 1
    assert lines[0].keys() == {"id", "error"}
    assert "there is no text in column 'text'" in lines[0]["error"]
