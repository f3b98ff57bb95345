"""The model equals an oracle in numpy: both layouts, every attention, padded and packed, beyond the last position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.ltg_bert import LAYOUTS, LENGTHS, ltg_model, ltg_pack, ltg_padded, ltg_sequences
from tests.tiny.ltg_oracle import Oracle

from tinyhat.encoder.ltg_bert import (
    LtgBertForMaskedLM,
    LtgBertForSequenceClassification,
    LtgBertForTokenClassification,
)
from tinyhat.encoder.path import install_packing

WAYS = ("eager", "sdpa", "flex_attention", "packed")


def states(model: torch.nn.Module, way: str) -> list[np.ndarray]:
    """Last hidden states of every sequence, [n, H] each."""
    sequences = ltg_sequences()
    with torch.no_grad():
        if way == "packed":
            assert install_packing(model, 0, None, {0}) == ""
            hidden = model.base_model(**ltg_pack(sequences, gather=False)).last_hidden_state
            return [x.numpy() for x in hidden[0].split(LENGTHS)]
        model.set_attn_implementation(way)
        ids, mask = ltg_padded(sequences)
        with torch.compiler.set_stance("force_eager"):  # flex would compile C++ for a minute
            hidden = model.base_model(ids, mask).last_hidden_state
        return [x[:n].numpy() for x, n in zip(hidden, LENGTHS, strict=True)]


# transformers builds its block mask with a flag that torch has deprecated; torch finds flex slow when not compiled
@pytest.mark.filterwarnings(
    "ignore:_compile flag:DeprecationWarning", "ignore:flex_attention called without:UserWarning"
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_hidden_states(layout: str, way: str) -> None:
    model = ltg_model(relative_qk_layout=layout)
    if way == "flex_attention" and not model._supports_flex_attn:
        pytest.skip("before transformers 5.17 its flex function has no position bias")
    oracle = Oracle(model)
    for x, got in zip(ltg_sequences(), states(model, way), strict=True):
        expected = oracle.states(x.numpy())[-1]
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_layouts_are_two_functions() -> None:
    x = ltg_sequences([20])[0][None]
    split, interleaved = (ltg_model(relative_qk_layout=layout) for layout in LAYOUTS)
    interleaved.load_state_dict(split.state_dict())
    assert not torch.allclose(split(x).logits, interleaved(x).logits, atol=1e-2)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_logits(head: str) -> None:
    x = ltg_sequences([20])[0]
    for kind in (LtgBertForMaskedLM, LtgBertForSequenceClassification, LtgBertForTokenClassification):
        model = ltg_model(kind, classifier_head=head)
        oracle = Oracle(model)
        last = oracle.states(x.numpy())[-1]
        expected = oracle.word_logits(last) if kind is LtgBertForMaskedLM else oracle.class_logits(last)
        if kind is LtgBertForSequenceClassification:
            expected = expected[:1]
        got = model(x[None]).logits.detach().numpy().reshape(expected.shape)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_hidden_states_are_the_stream_itself() -> None:
    """Cumulative and one more than layers; the published wrappers give differences instead."""
    model = ltg_model()
    x = ltg_sequences([12])[0]
    shown = model(x[None], output_hidden_states=True).hidden_states
    for got, expected in zip(shown, Oracle(model).states(x.numpy()), strict=True):
        np.testing.assert_allclose(got[0].detach(), expected, atol=1e-5 * np.abs(expected).max())
    torch.testing.assert_close(shown[-1], model.base_model(x[None]).last_hidden_state)


def test_attentions_are_probabilities() -> None:
    model = ltg_model()
    model.set_attn_implementation("eager")
    ids, mask = ltg_padded(ltg_sequences([12, 7]))
    shown = model(ids, mask, output_attentions=True).attentions
    assert len(shown) == 3
    for probabilities in shown:
        assert probabilities.shape == (2, 4, 12, 12)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 4, 12))
        assert float(probabilities[1, :, :, 7:].detach().abs().max()) == 0
