"""Longformer, BigBird, ModernBERT and extended BERTs train and predict on documents of 2,000 tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.models import POSITIONS, save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from tinyhat.config import EncoderConfig, ReadingConfig
from tinyhat.data.packing import build_pack
from tinyhat.data.reading import Reader, Reading
from tinyhat.embed.states import layer_states
from tinyhat.encoder.forward import forward_pack
from tinyhat.encoder.hidden import hidden_states
from tinyhat.encoder.layers import layer_list
from tinyhat.encoder.load import backend_tokenizer, load_encoder, load_trained, wrap_model
from tinyhat.encoder.long import extend_positions, full_attention_tokens, long_inputs, long_notes
from tinyhat.errors import UserError
from tinyhat.head.losses import document_losses
from tinyhat.types import Targets

CPU = torch.device("cpu")
SPARSE = {"attention_type": "block_sparse", "block_size": 16, "num_random_blocks": 2}
FAMILIES = {
    "longformer": {"attention_window": [16, 16], "max_position_embeddings": 2112, "sep_token_id": 3},
    "big_bird": SPARSE | {"max_position_embeddings": 2112},
    "modernbert": {"max_position_embeddings": 8192},
    "bert": {},
    "roberta": {},
}
TEXTS = ["law court market fish " * 900, "tax trade milk"]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_long_encoders_train_and_predict_on_2000_tokens(family):
    model = tiny_model(family, "single", **FAMILIES[family])
    if family in ("bert", "roberta"):
        extend_positions(model, 2048, 2 if family == "roberta" else 0)
    tokenizer = tiny_tokenizer("bpe" if family == "roberta" else "wordpiece")
    encoder = wrap_model(family, model, tokenizer, EncoderConfig())
    assert encoder.packed == (family not in ("longformer", "big_bird")), encoder.reason
    reading = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=2048)).read(TEXTS)
    assert reading.lengths[0] > 2000
    targets = Targets("single", 3, np.array([0, 2]))
    pack = build_pack(reading, np.arange(2), encoder.first_position, targets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    losses = []
    for _ in range(3):
        loss = document_losses(forward_pack(encoder, pack, CPU), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    model.eval()
    with torch.inference_mode():
        both = forward_pack(encoder, pack, CPU)
        alone = forward_pack(encoder, build_pack(reading, np.array([0]), encoder.first_position), CPU)
    assert both.shape == (2, 3)
    torch.testing.assert_close(both[:1], alone, rtol=1e-3, atol=1e-3)


def test_bigbird_stays_sparse_after_a_short_batch_and_says_when_it_is_full():
    model = tiny_model("big_bird", "single", **FAMILIES["big_bird"]).eval()
    encoder = wrap_model("big_bird", model, tiny_tokenizer("wordpiece"), EncoderConfig())
    least = full_attention_tokens(model)
    assert least == (5 + 4) * 16
    reading = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=512)).read(TEXTS)
    for row, kind in ((1, "original_full"), (0, "block_sparse"), (1, "original_full")):
        with torch.inference_mode():
            forward_pack(encoder, build_pack(reading, np.array([row])), CPU)
        assert model.base_model.attention_type == kind
    assert "full, not block-sparse" in long_notes(model, least)[0]
    assert "sparse above" in long_notes(model, 512)[0]
    assert long_notes(tiny_model("bert"), 512) == []


def pack_of(encoder, lengths):
    ids = np.random.default_rng(0).integers(5, 100, sum(lengths)).astype(np.int32)
    counts = np.array(lengths, np.int64)
    reading = Reading(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), counts, counts)
    return build_pack(reading, np.arange(len(lengths)), encoder.first_position)


def one_by_one(model, pack):
    parts = np.split(pack.input_ids, pack.cu_seqlens[1:-1])
    return torch.cat([model(input_ids=torch.from_numpy(part)[None]).logits for part in parts])


def test_a_bigbird_document_does_not_depend_on_its_neighbours():
    """Its last block is seen by all: with a longer neighbour that would be padding, below 144 tokens full or sparse."""
    settings = SPARSE | {"max_position_embeddings": 512}
    model = tiny_model("big_bird", "single", **settings).eval()
    encoder = wrap_model("big_bird", model, tiny_tokenizer("wordpiece"), EncoderConfig())
    pack = pack_of(encoder, [512, 500, 490, 300, 290, 145, 144, 140])
    sparse, full = (tiny_model("big_bird", "single", **settings | {"attention_type": kind}).eval()
                    for kind in ("block_sparse", "original_full"))  # fmt: skip
    with torch.inference_mode():
        found = forward_pack(encoder, pack, CPU)
        torch.testing.assert_close(found[:6], one_by_one(sparse, pack)[:6], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[6:], one_by_one(full, pack)[6:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["longformer", "big_bird"])
def test_hidden_states_for_training_are_those_for_embeddings(family):
    """Longformer's first token sees all in both; BigBird's last block is filled up and cut off again."""
    model = tiny_model(family, "single", **FAMILIES[family]).eval()
    encoder = wrap_model(family, model, tiny_tokenizer("wordpiece"), EncoderConfig())
    pack = pack_of(encoder, [300, 9, 300])
    with torch.inference_mode():
        found, expected = hidden_states(encoder, pack, CPU), layer_states(encoder, pack, CPU, every=True)
    for layer, state in zip(found, expected, strict=True):
        torch.testing.assert_close(layer, state, rtol=1e-4, atol=1e-5)


def test_bigbird_trains_in_bf16_and_changing_its_attention_draws_no_random_numbers():
    model = tiny_model("big_bird", "single", **SPARSE | {"max_position_embeddings": 512})
    encoder = wrap_model("big_bird", model, tiny_tokenizer("wordpiece"), EncoderConfig())
    names = [name for name, _ in model.named_parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        forward_pack(encoder, pack_of(encoder, [300, 9]), CPU).float().sum().backward()
    moved = [p for name, p in model.named_parameters() if "pooler" not in name]  # the head does not read it
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moved)
    model.eval()
    state = torch.get_rng_state()
    with torch.inference_mode():
        for lengths in ([300], [9], [300]):
            forward_pack(encoder, pack_of(encoder, lengths), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, _ in model.named_parameters()] == names


def test_longformers_first_token_sees_everything():
    model = tiny_model("longformer", "single", **FAMILIES["longformer"]).eval()
    encoder = wrap_model("longformer", model, tiny_tokenizer("wordpiece"), EncoderConfig())
    assert (encoder.first_position, encoder.max_positions) == (1, 2111)
    seen: list[torch.Tensor] = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _m, _a, inputs: seen.append(inputs["global_attention_mask"]), with_kwargs=True
    )
    with torch.inference_mode():
        forward_pack(encoder, pack_of(encoder, [300, 40]), CPU)
    hook.remove()
    assert all(mask[:, 0].eq(1).all() and mask[:, 1:].eq(0).all() for mask in seen)
    mask = torch.ones(2, 7, dtype=torch.int64)
    assert long_inputs(model, mask)["global_attention_mask"].tolist() == 2 * [[1, 0, 0, 0, 0, 0, 0]], (
        "not left to chance"
    )


@pytest.mark.parametrize(("family", "first"), [("bert", 0), ("roberta", 2)])
def test_extended_positions_are_tiled_and_saved(tmp_path, family, first):
    save_tiny(tmp_path, family)
    wanted = EncoderConfig(extend_positions=3 * POSITIONS)
    encoder = load_encoder(str(tmp_path), "single", ["a", "b"], wanted, 3 * POSITIONS, 0)
    plain = load_encoder(str(tmp_path), "single", ["a", "b"], EncoderConfig(), POSITIONS, 0)
    old, new = (e.model.base_model.embeddings.position_embeddings.weight for e in (plain, encoder))
    for k in range(3):
        assert torch.equal(new[first + k * POSITIONS : first + (k + 1) * POSITIONS], old[first:])
    assert torch.equal(new[:first], old[:first])
    assert encoder.packed
    assert encoder.max_positions == 3 * POSITIONS
    encoder.save(tmp_path / "saved")
    again = load_encoder(str(tmp_path / "saved"), "single", ["a", "b"], EncoderConfig(), 3 * POSITIONS, 0)
    assert torch.equal(again.model.base_model.embeddings.position_embeddings.weight, new)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_local_attention_is_local_and_kept(tmp_path, family):
    save_tiny(tmp_path, family)
    wanted = EncoderConfig(extend_positions=200, local_attention=8)
    encoder = load_encoder(str(tmp_path), "single", ["a", "b"], wanted, 200, 0)
    assert encoder.packed
    _, layers = layer_list(encoder.model.base_model)
    seen: list[torch.Tensor] = []
    hook = layers[0].register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    pack = pack_of(encoder, [40, 200])
    with torch.inference_mode():
        found = forward_pack(encoder, pack, CPU)
        pack.input_ids[20] = 101
        forward_pack(encoder, pack, CPU)
        pack.input_ids[20] = pack_of(encoder, [40, 200]).input_ids[20]
    hook.remove()
    moved = (seen[0] - seen[1]).abs().amax(dim=-1)[0] > 0
    assert torch.flatten(torch.nonzero(moved)).tolist() == list(range(16, 25)), "4 tokens to either side"
    encoder.save(tmp_path / "saved")
    encoder.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_trained(tmp_path / "saved", EncoderConfig())
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        torch.testing.assert_close(forward_pack(again, pack, CPU), found)
        assert (one_by_one(stock, pack)[1] - found[1]).abs().max() > 1e-5, "plain transformers sees all"


def test_local_attention_needs_packs(tmp_path):
    save_tiny(tmp_path, "bert")
    with pytest.raises(UserError, match="only packed attention"):
        load_encoder(str(tmp_path), "single", ["a"], EncoderConfig(local_attention=8, path="padded"), 64, 0)


def test_positions_that_cannot_be_extended_are_named():
    with pytest.raises(UserError, match="no learned positions"):
        extend_positions(tiny_model("modernbert"), 100, 0)
    with pytest.raises(UserError, match="already"):
        extend_positions(tiny_model("bert"), 10, 0)


def test_local_attention_without_layers_to_make_local_is_refused(tmp_path):
    save_tiny(tmp_path, "albert")
    with pytest.raises(UserError, match="nothing would change"):
        load_encoder(str(tmp_path), "single", ["a"], EncoderConfig(local_attention=8), 64, 0)
