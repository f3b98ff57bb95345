"""Encoders made for long documents through a whole run: trained, saved and loaded, they read what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.models import save_tiny
from transformers import AutoModelForSequenceClassification

from tinyhat.config import DataConfig, build_config
from tinyhat.data.read import read_dataset
from tinyhat.pipeline import train_dataset
from tinyhat.predict import load

LONG = {
    "longformer": {"attention_window": [64, 64], "max_position_embeddings": 2112, "sep_token_id": 3},
    "big_bird": {"attention_type": "block_sparse", "block_size": 16, "max_position_embeddings": 2112},
    "modernbert": {"max_position_embeddings": 4096, "local_attention": 64},
    "bert": {},
}
TOKENS = {"longformer": 2000, "big_bird": 2000, "modernbert": 3000, "bert": 2000}


@pytest.mark.parametrize("family", list(LONG))
def test_a_run_reads_documents_of_2000_tokens_and_more(tmp_path, monkeypatch, family):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))
    model = save_tiny(tmp_path / "m", family, **LONG[family])
    topics = {"fish": "fish milk law court ", "ships": "ship tax trade market "}
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "dev"):
        rows = [f"{(words * 1000).strip()},{label}" for label, words in topics.items()]
        rows += [f"{words.strip()},{label}" for label, words in topics.items()]
        (data / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    dataset = read_dataset(DataConfig(path=str(data)), 0)
    settings = {
        "encoder.model": str(model), "reading.max_tokens": TOKENS[family], "train.max_steps": 1, "train.batch_size": 2,
        "train.plan": "fp32", "evaluate.baseline": False, "evaluate.bootstrap": 0,
    }  # fmt: skip
    if family == "bert":
        settings["encoder.extend_positions"] = TOKENS[family]
    said: list[str] = []
    run = train_dataset(build_config(None, settings), dataset, tmp_path / "run", say=said.append)
    assert any("block-sparse above" in line for line in said) == (family == "big_bird")
    classifier = load(run.path)
    texts = dataset.splits["dev"].texts
    results = classifier.predict(texts)
    assert max(result["tokens_read"] for result in results) == TOKENS[family] - 2
    longest, shortest = max(texts, key=len), min(texts, key=len)
    found = classifier.logits([longest, shortest])
    stock = AutoModelForSequenceClassification.from_pretrained(run.model, attn_implementation=_stock(family)).eval()
    tokenizer = classifier.predictor.encoder.tokenizer
    for text, row in zip([longest, shortest], found, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=TOKENS[family])
        assert inputs["input_ids"].shape[1] == TOKENS[family] or text is shortest
        if family == "big_bird":  # for good at the first short text, so each text has a fresh one
            stock = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
        with torch.no_grad():
            expected = stock(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0].numpy()
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-3)


def _stock(family: str) -> str | None:
    return "sdpa" if family in ("modernbert", "bert") else None
