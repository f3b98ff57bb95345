"""Published checkpoints: the same function under other names, the layout found out, what does not fit named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.ltg_bert import LAYOUTS, ltg_config, ltg_model, ltg_padded, ltg_sequences
from tests.tiny.models import tiny_tokenizer
from transformers import AutoModelForMaskedLM

from tinyhat.encoder.ltg_bert import LtgBertForMaskedLM, LtgBertForSequenceClassification, LtgBertModel
from tinyhat.encoder.ltg_bert.published import (
    convert,
    detect_layout,
    from_published,
    layout_losses,
    load_published,
    save_published,
    to_published,
)
from tinyhat.encoder.quiet import quiet
from tinyhat.errors import UserError

TEXTS = ["law court market fish tax trade milk ship union state rule year " * 2] * 30


def write(folder: Path, model: torch.nn.Module, form: str = "safetensors", **changes: Any) -> Path:
    """Write what a published folder has: no layout, another model type, wrong padding, position tables, sentence head.

    `changes` are weights to add, or to leave out where None.
    """
    folder.mkdir()
    config = model.config.to_dict()
    kept = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_dropout_prob "
        "attention_probs_dropout_prob max_position_embeddings position_bucket_size layer_norm_eps"
    )
    given = {key: config[key] for key in kept.split()} | {"model_type": "bert", "pad_token_id": 4, "cls_dropout": 0.2}
    (folder / "config.json").write_text(json.dumps(given | {"output_all_encoded_layers": True}))
    state = {k: v.clone() for k, v in to_published(model.state_dict()).items()}
    for i in range(3):
        state[f"transformer.layers.{i}.attention.position_indices"] = torch.zeros(40, 40, dtype=torch.int64)
    state["next_sentence_classifier.nonlinearity.1.weight"] = torch.zeros(32, 32)
    state = {k: v for k, v in (state | changes).items() if v is not None}
    if form == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """A tiny masked LM of each layout that has learned the texts; random ones have no better layout."""
    found = {}
    for layout in LAYOUTS:
        torch.manual_seed(0)
        model = LtgBertForMaskedLM(ltg_config(relative_qk_layout=layout, hidden_dropout_prob=0.0, num_hidden_layers=2))
        tokenizer = tiny_tokenizer()
        row = torch.tensor(tokenizer(TEXTS[0])["input_ids"])
        optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(120):
            chosen = torch.rand(8, len(row)) < 0.3
            chosen[:, 0] = False
            ids = row.expand(8, -1).masked_fill(chosen, tokenizer.mask_token_id)
            model(ids, labels=torch.where(chosen, row, -100)).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        found[layout] = model.eval()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("tied", ["twice", "once"])
def test_published_weights_load_exactly(tmp_path: Path, layout: str, form: str, tied: str) -> None:
    model = ltg_model(LtgBertForMaskedLM, relative_qk_layout=layout)
    changes = {"classifier.nonlinearity.5.weight": None} if tied == "once" else {}
    folder = write(tmp_path / "theirs", model, form, **changes)
    again, transfer = load_published(folder, layout, LtgBertForMaskedLM)
    ids, mask = ltg_padded(ltg_sequences([9, 45]))
    assert torch.equal(again(ids, mask).logits, model(ids, mask).logits)
    assert again.lm_head.out_proj.weight is again.embedding.word_embedding.weight
    assert not transfer.fresh
    assert not transfer.left
    assert again.config.pad_token_id == 0  # as the tokenizer says, not as the published config does
    assert again.config.classifier_dropout == 0.2


def test_as_a_bare_model_and_as_a_classifier(tmp_path: Path) -> None:
    model = ltg_model(LtgBertForMaskedLM)
    folder = write(tmp_path / "theirs", model)
    body, transfer = load_published(folder, "split", LtgBertModel)
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    assert torch.equal(body(ids, mask).last_hidden_state, model.model(ids, mask).last_hidden_state)
    assert len(transfer.left) == 4
    classifier, transfer = load_published(folder, "split", LtgBertForSequenceClassification)
    assert torch.equal(classifier.model(ids, mask).last_hidden_state, body(ids, mask).last_hidden_state)
    assert set(transfer.fresh) == {n for n, _ in classifier.named_parameters() if n.startswith("head.")}


def test_published_names_can_be_written_back(tmp_path: Path) -> None:
    model = ltg_model(LtgBertForMaskedLM)
    save_published(model, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(state["classifier.nonlinearity.5.weight"], state["embedding.word_embedding.weight"])
    ours = from_published(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    with pytest.raises(UserError, match="out exists: choose another folder"):
        save_published(model, tmp_path / "out")
    classifier = ltg_model(classifier_head="mlp")
    assert {n for n in to_published(classifier.state_dict()) if n.startswith("head")} == {
        f"head.nonlinearity.{i}.{part}" for i in (1, 5) for part in ("weight", "bias")
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_told_by_the_loss(tmp_path: Path, trained: dict[str, Any], layout: str) -> None:
    folder = write(tmp_path / "theirs", trained[layout])
    losses = detect_layout(folder, TEXTS)
    assert min(losses, key=losses.__getitem__) == layout
    config = convert(folder, tmp_path / "ours", texts=TEXTS)
    assert config.relative_qk_layout == layout
    with quiet():
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    assert torch.equal(model(ids, mask).logits, trained[layout](ids, mask).logits)
    assert (tmp_path / "ours" / "tokenizer.json").is_file()
    wrong = next(other for other in LAYOUTS if other != layout)
    with pytest.raises(UserError, match=f"is not {wrong}: its masked-LM loss is .* so, and .* as {layout}"):
        convert(folder, tmp_path / "wrong", layout=wrong, texts=TEXTS)
    assert not (tmp_path / "wrong").exists()


def test_finding_out_leaves_the_model_as_it_was() -> None:
    model = ltg_model(LtgBertForMaskedLM).train()
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    losses = layout_losses(model, ids, ids, mask)
    assert losses["split"] != losses["interleaved"]
    assert model.training
    assert not any(layer.attention.interleaved for layer in model.transformer.layers)


def test_an_untrained_model_has_no_better_layout(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", LtgBertForMaskedLM(ltg_config()))
    with pytest.raises(UserError, match="too near to tell the layout"):
        detect_layout(folder, TEXTS)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model = ltg_model(LtgBertForMaskedLM)
    foreign = write(tmp_path / "foreign", model, **{"pooler.dense.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match=r"weights that LTG-BERT has no place for: pooler.dense.weight is"):
        load_published(foreign, "split", LtgBertForMaskedLM)
    partial = write(tmp_path / "partial", model, **{"transformer.layers.1.mlp.mlp.1.weight": None})
    with pytest.raises(UserError, match=r"not a whole one: model.transformer.layers.1.mlp.up.weight is not in it"):
        load_published(partial, "split", LtgBertForMaskedLM)
    wide = write(tmp_path / "wide", model, **{"embedding.relative_embedding": torch.zeros(63, 32)})
    with pytest.raises(UserError, match=r"has the shape \[63, 32\] and its config asks for \[23, 32\]"):
        load_published(wide, "split", LtgBertForMaskedLM)
    with pytest.raises(UserError, match="layout 'woven' is neither 'split' nor 'interleaved'"):
        load_published(partial, "woven", LtgBertForMaskedLM)
    with pytest.raises(UserError, match="does not say its layout"):
        convert(partial, tmp_path / "out")
    with pytest.raises(UserError, match=r"has no config.json"):
        load_published(tmp_path, "split", LtgBertForMaskedLM)


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", ltg_model(LtgBertForMaskedLM))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 33}))
    with pytest.raises(UserError, match="hidden_size = 33 is not divisible by num_attention_heads = 4"):
        load_published(folder, "split", LtgBertForMaskedLM)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    with pytest.raises(UserError, match="has no position_bucket_size: it is not the config of an LTG-BERT"):
        load_published(folder, "split", LtgBertForMaskedLM)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load_published(folder, "split", LtgBertForMaskedLM)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="its weights cannot be read"):
        load_published(folder, "split", LtgBertForMaskedLM)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has neither model.safetensors nor pytorch_model.bin"):
        load_published(folder, "split", LtgBertForMaskedLM)
    torch.save({"embedding": Path("code that weights_only refuses")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights cannot be read"):
        load_published(folder, "split", LtgBertForMaskedLM)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer"):
        load_published(folder, "split", LtgBertForMaskedLM)


def test_the_tokenizer_says_what_pads_where_the_config_does_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", ltg_model(LtgBertForMaskedLM))
    config = json.loads((folder / "config.json").read_text())
    for given in (None, 7):
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "pad_token_id"}))
        if given is not None:
            (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": given}))
        model, _ = load_published(folder, "split", LtgBertForMaskedLM)
        assert model.config.pad_token_id == tiny_tokenizer().pad_token_id


def test_a_classifier_is_not_converted_into_a_masked_lm(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", ltg_model(classifier_head="mlp"))
    for ask in ({"layout": "split"}, {"texts": TEXTS}):
        with pytest.raises(UserError, match=r"has no masked-LM head \(lm_head.* is not in it\)"):
            convert(folder, tmp_path / "out", **ask)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    small = ltg_model(LtgBertForMaskedLM, vocab_size=50)
    with pytest.raises(UserError, match=r"does not belong to this model: it has \d+ tokens, the model 50"):
        detect_layout(write(tmp_path / "theirs", small), TEXTS)
