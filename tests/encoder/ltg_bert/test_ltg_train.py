"""``tinyhat train DATA --model MASKED_LM``: the encoder is carried over, packed, and reported weight by weight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.corpus import tiny_rows, write_tiny
from tests.tiny.ltg_bert import ltg_model, save_ltg
from tests.tiny.models import tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tinyhat
from tinyhat.config import EncoderConfig
from tinyhat.encoder.load import load_encoder, load_trained
from tinyhat.encoder.ltg_bert import LtgBertForSequenceClassification
from tinyhat.encoder.ltg_bert.published import save_published
from tinyhat.errors import UserError

LABELS = ["law", "milk", "tax"]
REPORT = """\
carried over: model.embedding.relative_embedding [23, 32]
carried over: model.embedding.word_embedding.weight [200, 32]
carried over: model.embedding.relative_layer_norm.weight [32]
carried over: model.embedding.relative_layer_norm.bias [32]
carried over: model.transformer.layers.{0-2}.attention.in_proj_qk.weight [64, 32]
carried over: model.transformer.layers.{0-2}.attention.in_proj_qk.bias [64]
carried over: model.transformer.layers.{0-2}.attention.in_proj_v.weight [32, 32]
carried over: model.transformer.layers.{0-2}.attention.in_proj_v.bias [32]
carried over: model.transformer.layers.{0-2}.attention.out_proj.weight [32, 32]
carried over: model.transformer.layers.{0-2}.attention.out_proj.bias [32]
carried over: model.transformer.layers.{0-2}.attention.post_layer_norm.weight [32]
carried over: model.transformer.layers.{0-2}.attention.post_layer_norm.bias [32]
carried over: model.transformer.layers.{0-2}.mlp.up.weight [96, 32]
carried over: model.transformer.layers.{0-2}.mlp.down.weight [32, 48]
starts fresh: classifier.weight [3, 32]
starts fresh: classifier.bias [3]
left behind: lm_head.dense.bias
left behind: lm_head.dense.weight
left behind: lm_head.out_proj.bias""".splitlines()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def load(folder: Path, **settings: object):
    return load_encoder(str(folder), "multi", LABELS, EncoderConfig(**settings), 64, 0)


def test_transfer_carries_the_body_and_says_so(tmp_path: Path) -> None:
    encoder = load(save_ltg(tmp_path / "mlm"))
    assert encoder.packed, encoder.reason
    assert encoder.notes == REPORT
    assert encoder.max_positions is None
    given = load_file(tmp_path / "mlm" / "model.safetensors")
    for name, tensor in encoder.model.state_dict().items():
        if name.startswith("model."):
            assert torch.equal(tensor, given[name]), name


def test_an_old_head_starts_fresh(tmp_path: Path) -> None:
    encoder = load(save_ltg(tmp_path / "old", LtgBertForSequenceClassification))
    assert encoder.notes[-2:] == ["starts fresh: classifier.weight [3, 32]", "starts fresh: classifier.bias [3]"]
    assert float(encoder.model.classifier.bias.abs().max().detach()) == 0


@pytest.mark.parametrize("task", ["single", "multi"])
def test_the_whole_way(tmp_path: Path, task: str) -> None:
    """Trained packed from a masked LM, saved, and read by plain transformers with the same probabilities."""
    write_tiny(tmp_path / "data", task)
    save_ltg(tmp_path / "mlm", hidden_dropout_prob=0.0)
    said: list[str] = []
    settings = {
        "encoder.model": str(tmp_path / "mlm"), "reading.max_tokens": 48, "train.max_steps": 12, "train.batch_size": 8,
        "train.learning_rate": 3e-3, "evaluate.bootstrap": 0, "evaluate.baseline": False,
    }  # fmt: skip
    tinyhat.train(tmp_path / "data", tmp_path / "run", settings, say=said.append)
    text = "\n".join(said)
    assert "packed: no padding is computed" in text
    assert "carried over: model.transformer.layers.{0-2}.mlp.down.weight [32, 48]" in text
    texts = [row["text"] for row in tiny_rows(task, 20, seed=5)] + ["fish", "market " * 60]
    ours = tinyhat.load(tmp_path / "run", plan="fp32").predict_proba(texts)
    folder = tmp_path / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits
    theirs = torch.softmax(logits, 1) if task == "single" else torch.sigmoid(logits)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["attention_probs_dropout_prob"] == 0.1
    assert not load_trained(folder, EncoderConfig()).notes


def test_attention_dropout_takes_the_padded_path(tmp_path: Path) -> None:
    encoder = load(save_ltg(tmp_path / "mlm"), attention_dropout=0.1)
    assert not encoder.packed


def test_mlp_head(tmp_path: Path) -> None:
    encoder = load(save_ltg(tmp_path / "mlm", classifier_head="mlp"))
    assert encoder.packed
    assert [note for note in encoder.notes if "fresh" in note] == [
        "starts fresh: head.dense.weight [32, 32]",
        "starts fresh: head.dense.bias [32]",
        "starts fresh: head.out_proj.weight [3, 32]",
        "starts fresh: head.out_proj.bias [3]",
    ]


def edit(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_bad_checkpoints_end_in_one_sentence(tmp_path: Path) -> None:
    cases = {
        "hidden_size = 30 is not divisible by num_attention_heads = 4": edit(save_ltg(tmp_path / "a"), hidden_size=30),
        r"'relative_qk_layout' expected one of \('split', 'interleaved'\), got woven": edit(
            save_ltg(tmp_path / "b"), relative_qk_layout="woven"
        ),
        r"has the shape \[23, 32\] and its config asks for \[19, 32\]": edit(
            save_ltg(tmp_path / "c"), position_bucket_size=10
        ),
        r"no LTG-BERT, or not a whole one: .* are not in it": edit(save_ltg(tmp_path / "d"), num_hidden_layers=4),
        r"no place for: model.transformer.layers.2.attention.*": edit(save_ltg(tmp_path / "e"), num_hidden_layers=2),
        r"its tokenizer has \d+ tokens and the model knows 40": save_ltg(tmp_path / "f", vocab_size=40),
    }
    for sentence, folder in cases.items():
        with pytest.raises(UserError, match=sentence) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


def test_a_published_folder_must_be_converted_first(tmp_path: Path) -> None:
    """It calls itself bert: transformers would build a BERT from random weights without a word."""
    save_published(ltg_model(), tmp_path / "theirs")
    edit(tmp_path / "theirs", model_type="bert")
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="is a published LTG-BERT that calls itself 'bert': convert it first"):
        load(tmp_path / "theirs")
