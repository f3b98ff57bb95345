"""What transformers' own model tests do not see: each check fails when the fault is put in."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.ltg_bert import ltg_config, ltg_model, ltg_padded, ltg_sequences
from torch import nn

from tinyhat.encoder.ltg_bert import (
    LtgBertForMaskedLM,
    LtgBertForSequenceClassification,
    LtgBertPreTrainedModel,
    layers_ltg_bert,
    modeling_ltg_bert,
)
from tinyhat.encoder.quiet import quiet


def check_mask(_folder: Path) -> None:
    """What stands at padded places does not change the rest."""
    model = ltg_model()
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    other = torch.where(mask.bool(), ids, 77)
    for way in ("eager", "sdpa"):
        model.set_attn_implementation(way)
        torch.testing.assert_close(model(other, mask).logits, model(ids, mask).logits, atol=1e-6, rtol=1e-6)


def check_tying(folder: Path) -> None:
    """The output matrix is the word embedding: one tensor, after a round trip too."""
    model = LtgBertForMaskedLM(ltg_config())
    with quiet():
        model.save_pretrained(folder)
        again = LtgBertForMaskedLM.from_pretrained(folder)
    for one in (model, again):
        assert one.lm_head.out_proj.weight is one.embedding.word_embedding.weight


def check_depth(folder: Path) -> None:
    """Feed-forward matrices shrink with depth, drawn or drawn for missing keys."""
    torch.manual_seed(0)
    config = ltg_config(hidden_size=96, intermediate_size=256, num_hidden_layers=3)
    built = LtgBertForSequenceClassification(config)
    with quiet():
        nearly_nothing = {"classifier.bias": torch.zeros(3)}
        drawn = LtgBertForSequenceClassification.from_pretrained(None, config=config, state_dict=nearly_nothing)
    for model in (built, drawn):
        for i, layer in enumerate(model.transformer.layers):
            expected = 0.880 * math.sqrt(2 / (5 * 96)) * math.sqrt(1 / (2 * (1 + i)))
            for linear in (layer.mlp.up, layer.mlp.down):
                assert float(linear.weight.detach().std()) == pytest.approx(expected, rel=0.03)


def check_loaded_weights_stay(folder: Path) -> None:
    """Loading one key afresh leaves its module's other weights as they were in the checkpoint."""
    model = ltg_model()
    with quiet():
        state = {k: v.clone() for k, v in model.state_dict().items() if k != "classifier.bias"}
        given = {k: v.clone() for k, v in state.items()}
        again = LtgBertForSequenceClassification.from_pretrained(None, config=model.config, state_dict=given)
    for name, tensor in state.items():
        assert torch.equal(again.state_dict()[name], tensor), name


def ignore_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modeling_ltg_bert, "create_bidirectional_mask", lambda **_: None)


def drop_tied_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LtgBertForMaskedLM, "_tied_weights_keys", None)


def drop_tie_setting(patch: pytest.MonkeyPatch) -> None:
    stock = LtgBertForMaskedLM.__init__

    def init(self: Any, config: Any) -> None:
        config.tie_word_embeddings = False
        stock(self, config)

    patch.setattr(LtgBertForMaskedLM, "__init__", init)


def scale_in_constructor(patch: pytest.MonkeyPatch) -> None:
    stock = layers_ltg_bert.LtgBertMlp.__init__

    def init(self: Any, config: Any, layer_idx: int) -> None:
        stock(self, config, layer_idx)
        for linear in (self.up, self.down):
            with torch.no_grad():
                linear.weight.mul_(linear.init_scale)
            del linear.init_scale

    patch.setattr(layers_ltg_bert.LtgBertMlp, "__init__", init)


def draw_in_place(patch: pytest.MonkeyPatch) -> None:
    def init(self: Any, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=0.02)

    patch.setattr(LtgBertPreTrainedModel, "_init_weights", init)


PAIRS = [
    (check_mask, ignore_mask),
    (check_tying, drop_tied_keys),
    (check_tying, drop_tie_setting),
    (check_depth, scale_in_constructor),
    (check_loaded_weights_stay, draw_in_place),
]


@pytest.mark.parametrize(("check", "fault"), PAIRS, ids=[fault.__name__ for _, fault in PAIRS])
def test_the_check_holds_and_sees_the_fault(
    check: Callable[[Path], None],
    fault: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(tmp_path / "sound")
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(AssertionError):
            check(tmp_path / "mutated")
