"""Parameter counts, names and shapes, bucket boundaries and initial deviations are those of the published models."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny.ltg_bert import ltg_config
from tests.tiny.ltg_oracle import bucket

from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM, LtgBertForSequenceClassification
from tinyhat.encoder.ltg_bert.layers_ltg_bert import distance_index, position_buckets
from tinyhat.encoder.ltg_bert.published import to_published
from tinyhat.encoder.quiet import quiet

# hidden, intermediate, heads, vocabulary, parameters of the encoder, with the masked-LM head
SIZES = {
    "xs": (192, 512, 3, 16384, 8_480_448, 8_533_888),
    "small": (384, 1024, 6, 16384, 27_577_728, 27_741_952),
    "base": (768, 2048, 12, 16384, 97_622_784, 98_229_760),
    "small, 10M words": (384, 1024, 6, 6144, 23_645_568, 23_799_552),
}
FIRST_OF_BUCKET = [17, 21, 26, 32, 41, 51, 64, 81, 102, 128, 162, 203, 256, 322, 406]  # buckets 17 to 31


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size: str) -> None:
    hidden, intermediate, heads, vocabulary, encoder, whole = SIZES[size]
    config = LtgBertConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads
    )
    with torch.device("meta"):
        model = LtgBertForMaskedLM(config)
    assert (count(model.model), count(model)) == (encoder, whole)


def test_a_linear_classifier_adds_its_matrix() -> None:
    with torch.device("meta"):
        model = LtgBertForSequenceClassification(LtgBertConfig(num_labels=3))
    assert count(model) == 97_625_091


def test_published_names_and_shapes() -> None:
    config = ltg_config(num_hidden_layers=1)
    h, i, v, p = 32, 48, 200, 23
    layer = "transformer.layers.0."
    assert {name: tuple(t.shape) for name, t in to_published(LtgBertForMaskedLM(config).state_dict()).items()} == {
        "embedding.word_embedding.weight": (v, h),
        "embedding.relative_embedding": (p, h),
        "embedding.relative_layer_norm.weight": (h,),
        "embedding.relative_layer_norm.bias": (h,),
        f"{layer}attention.in_proj_qk.weight": (2 * h, h),
        f"{layer}attention.in_proj_qk.bias": (2 * h,),
        f"{layer}attention.in_proj_v.weight": (h, h),
        f"{layer}attention.in_proj_v.bias": (h,),
        f"{layer}attention.out_proj.weight": (h, h),
        f"{layer}attention.out_proj.bias": (h,),
        f"{layer}attention.post_layer_norm.weight": (h,),
        f"{layer}attention.post_layer_norm.bias": (h,),
        f"{layer}mlp.mlp.1.weight": (2 * i, h),
        f"{layer}mlp.mlp.4.weight": (h, i),
        "classifier.nonlinearity.1.weight": (h, h),
        "classifier.nonlinearity.1.bias": (h,),
        "classifier.nonlinearity.5.weight": (v, h),
        "classifier.nonlinearity.5.bias": (v,),
    }


def test_bucket_boundaries() -> None:
    buckets = position_buckets(32, 512)
    assert buckets.dtype == torch.int64
    ahead = buckets[511:].tolist()  # distances 0 to 511
    assert ahead[:17] == list(range(17))
    assert [ahead.index(b) for b in range(17, 32)] == FIRST_OF_BUCKET
    assert ahead[-1] == 31


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 64), st.integers(0, 600))
def test_buckets_mirror_grow_and_equal_the_formula(size: int, more: int) -> None:
    positions = size + more
    buckets = position_buckets(size, positions)
    assert torch.equal(buckets, -buckets.flip(0))
    assert bool((buckets.diff() >= 0).all())
    assert int(buckets.max()) <= size - 1
    offsets = range(-positions + 1, positions)
    assert buckets.tolist() == [bucket(o, size, positions) for o in offsets]


def test_distances_beyond_the_last_position_share_its_bucket() -> None:
    table = position_buckets(8, 16) + 7
    index = distance_index(table, 40)
    assert index.shape == (40, 40)
    assert int(index[39, 0]) == 14
    assert int(index[0, 39]) == 0
    assert int(index[5, 3]) == 7 + 2


@pytest.mark.parametrize("origin", ["built", "loaded with nothing in it"])
def test_initial_deviations(origin: str, tmp_path) -> None:
    """sqrt(2 / 5H) cut at twice that (0.880 of it is left), feed-forward shrunk by depth; biases 0, norms 1."""
    torch.manual_seed(0)
    config = ltg_config(hidden_size=128, intermediate_size=340, num_hidden_layers=4, position_bucket_size=32)
    model = LtgBertForMaskedLM(config)
    if origin != "built":
        with quiet():
            config.save_pretrained(tmp_path)
            nothing = {"lm_head.out_proj.bias": torch.zeros(200)}
            model = LtgBertForMaskedLM.from_pretrained(None, config=config, state_dict=nothing)
    sigma = math.sqrt(2 / (5 * 128))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float("layer_norm.weight" in name))), name
            continue
        depth = int(name.split(".")[3]) if ".mlp." in name else None
        expected = 0.880 * sigma * (1 if depth is None else math.sqrt(1 / (2 * (1 + depth))))
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.03), name
        assert float(parameter.detach().abs().max()) <= 2.01 * expected / 0.880
