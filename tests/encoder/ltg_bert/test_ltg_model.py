"""LTG-BERT as a transformers model: masks, lengths, embeddings, checkpointing, resizing, compilation, losses."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny.ltg_bert import LAYOUTS, ltg_config, ltg_model, ltg_padded, ltg_sequences
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tinyhat.encoder.load import enable_checkpointing
from tinyhat.encoder.ltg_bert import (
    LtgBertConfig,
    LtgBertForMaskedLM,
    LtgBertForSequenceClassification,
    LtgBertForTokenClassification,
    LtgBertModel,
)
from tinyhat.encoder.quiet import quiet


def test_auto_classes() -> None:
    pairs = {
        AutoModel: LtgBertModel,
        AutoModelForMaskedLM: LtgBertForMaskedLM,
        AutoModelForSequenceClassification: LtgBertForSequenceClassification,
        AutoModelForTokenClassification: LtgBertForTokenClassification,
    }
    for auto, kind in pairs.items():
        assert type(auto.from_config(ltg_config())) is kind


@pytest.mark.parametrize("way", ["eager", "sdpa"])
@pytest.mark.parametrize("left", [False, True])
def test_masks_of_any_dtype_and_either_side(way: str, left: bool) -> None:
    model = ltg_model()
    model.set_attn_implementation(way)
    sequences = ltg_sequences([9, 14, 5])
    ids, mask = ltg_padded(sequences, left)
    expected = model.model(ids, mask).last_hidden_state
    for dtype in (torch.bool, torch.float32, torch.int32, torch.uint8):
        torch.testing.assert_close(model.model(ids, mask.to(dtype)).last_hidden_state, expected)
    alone = [model.model(x[None]).last_hidden_state[0] for x in sequences]  # no mask at all
    torch.testing.assert_close(expected[mask.bool()], torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_row_of_padding_is_finite_and_disturbs_nobody() -> None:
    """Its context is zero in every implementation: there is nothing it may see."""
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    mask = torch.cat([mask, torch.zeros_like(mask[:1])])
    ids = torch.cat([ids, ids[:1]])
    found = []
    for way in ("eager", "sdpa"):
        model = ltg_model()
        model.set_attn_implementation(way)
        found.append(model.model(ids, mask).last_hidden_state)
        torch.testing.assert_close(found[-1][:2], model.model(ids[:2], mask[:2]).last_hidden_state)
    assert bool(found[0].isfinite().all())
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_inputs_embeds() -> None:
    model = ltg_model()
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    words = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=words, attention_mask=mask).logits, model(ids, mask).logits)
    with pytest.raises(ValueError, match="exactly one of"):
        model(input_ids=ids, inputs_embeds=words)
    with pytest.raises(ValueError, match="exactly one of"):
        model(attention_mask=mask)


def test_what_a_tokenizer_adds_is_taken() -> None:
    model = ltg_model()
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    types = torch.ones_like(ids)
    torch.testing.assert_close(model(ids, mask, token_type_ids=types).logits, model(ids, mask).logits)


def test_boundaries_are_refused_where_attention_would_look_across_them() -> None:
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    with pytest.raises(
        ValueError, match="sdpa attention would look across its boundaries: load the model with tinyhat"
    ):
        ltg_model()(ltg_sequences([9])[0][None], cu_seqlens=cu, max_seqlen=5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing(layout: str) -> None:
    plain = ltg_model(relative_qk_layout=layout).train()
    thrifty = copy.deepcopy(plain)
    enable_checkpointing(thrifty)
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    found = []
    for model in (plain, thrifty):
        torch.manual_seed(0)  # dropout is on: the layers computed again draw the same masks
        model(ids, mask, labels=torch.tensor([1, 2])).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_resize_keeps_the_tie() -> None:
    model = ltg_model(LtgBertForMaskedLM)
    before = model.embedding.word_embedding.weight.detach().clone()
    with quiet():
        model.resize_token_embeddings(210)
    assert model.config.vocab_size == 210
    assert model.lm_head.out_proj.weight is model.embedding.word_embedding.weight
    assert model(torch.tensor([[209, 3]])).logits.shape == (1, 2, 210)
    torch.testing.assert_close(model.embedding.word_embedding.weight[:200].detach(), before)


def test_tie_survives_copies_and_casts() -> None:
    model = copy.deepcopy(ltg_model(LtgBertForMaskedLM)).to(torch.bfloat16)
    assert model.lm_head.out_proj.weight is model.embedding.word_embedding.weight
    assert model.embedding.position_buckets.dtype == torch.int64


def test_untied_when_asked() -> None:
    model = LtgBertForMaskedLM(ltg_config(tie_word_embeddings=False))
    assert model.lm_head.out_proj.weight is not model.embedding.word_embedding.weight


def test_one_graph() -> None:
    model = ltg_model(num_hidden_layers=1)
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, mask).logits, model(ids, mask).logits, atol=1e-5, rtol=1e-5)


def test_losses_are_chosen_from_labels_and_not_written_down() -> None:
    ids, mask = ltg_padded(ltg_sequences([9, 14, 5, 7]))
    cases = {
        2: (torch.tensor([0, 1, 1, 0]), lambda z, y: functional.cross_entropy(z, y)),
        4: (torch.tensor([3, 1, 0, 2]), lambda z, y: functional.cross_entropy(z, y)),
        3: (torch.eye(4)[:, :3], lambda z, y: functional.binary_cross_entropy_with_logits(z, y)),
        1: (torch.tensor([0.5, 1.0, -2.0, 3.0]), lambda z, y: functional.mse_loss(z[:, 0], y)),
    }
    for count, (labels, loss) in cases.items():
        model = ltg_model(num_labels=count)
        found = model(ids, mask, labels=labels)
        torch.testing.assert_close(found.loss, loss(found.logits, labels))
        assert model.config.problem_type is None
    # one config, first for classes, then for several labels: nothing of the first guess is left
    model = ltg_model(num_labels=4)
    model(ids, mask, labels=torch.tensor([3, 1, 0, 2]))
    several = torch.eye(4)
    found = model(ids, mask, labels=several)
    torch.testing.assert_close(found.loss, functional.binary_cross_entropy_with_logits(found.logits, several))


def test_a_set_problem_type_decides() -> None:
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    model = ltg_model(num_labels=2, problem_type="regression")
    targets = torch.tensor([[0.5, 1.0], [2.0, 0.0]])
    found = model(ids, mask, labels=targets)
    torch.testing.assert_close(found.loss, functional.mse_loss(found.logits, targets))
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) do not fit logits of shape \(2, 2\) \(regression\)"):
        model(ids, mask, labels=torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("kind", [LtgBertForMaskedLM, LtgBertForTokenClassification])
def test_token_losses(kind: type) -> None:
    model = ltg_model(kind)
    ids, mask = ltg_padded(ltg_sequences([9, 14]))
    labels = torch.where(mask.bool() & (torch.rand(ids.shape) < 0.4), ids % 3, -100)
    found = model(ids, mask, labels=labels)
    expected = functional.cross_entropy(found.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(found.loss, expected)
    share = model(ids, mask, labels=labels, num_items_in_batch=100).loss * 100 / (labels != -100).sum()
    torch.testing.assert_close(share, expected)
    assert float(model(ids, mask, labels=torch.full_like(ids, -100)).loss.detach()) == 0  # nothing asked, not nan


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 30}, "hidden_size = 30 is not divisible by num_attention_heads = 4"),
        ({"position_bucket_size": 41}, "position_bucket_size = 41 is not between 4 and max_position_embeddings = 40"),
        ({"relative_qk_layout": "woven"}, "relative_qk_layout"),
        ({"classifier_head": "cubic"}, "classifier_head"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        ltg_config(**changes)


def test_a_saved_config_is_the_same_config(tmp_path) -> None:
    config = ltg_config(relative_qk_layout="interleaved", classifier_head="mlp", classifier_dropout=0.3)
    config.save_pretrained(tmp_path)
    assert LtgBertConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
