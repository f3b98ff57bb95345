"""A packed LTG-BERT equals the same model one sequence at a time: logits, every gradient, every way to compute."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny.ltg_bert import LAYOUTS, LENGTHS, ltg_model, ltg_pack, ltg_padded, ltg_sequences

from tinyhat.encoder import attention
from tinyhat.encoder.load import enable_checkpointing
from tinyhat.encoder.ltg_bert import LtgBertForMaskedLM, packed
from tinyhat.encoder.ltg_bert.batches import Inputs
from tinyhat.encoder.ltg_bert.flex import attend_flex
from tinyhat.encoder.ltg_bert.layers_ltg_bert import distance_index, position_bias, position_buckets
from tinyhat.encoder.path import install_packing
from tinyhat.encoder.verify import packing_fault


def install(model: torch.nn.Module) -> torch.nn.Module:
    assert install_packing(model, 0, None, {0}) == ""
    return model


def gradients(model: torch.nn.Module, out: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    (out * weight).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5 * largest, rtol=1e-4, msg=name)


def choose(way: str, patch: pytest.MonkeyPatch) -> None:
    """Probabilities kept, computed again, cut into many blocks; or as on a GPU, one batch and sums by product."""
    if way != "kept":
        patch.setattr(packed, "KEEP_BYTES", 0)
    if way == "small blocks":
        patch.setattr(attention, "BLOCK_BYTES", 1)
        patch.setattr(attention, "MIN_ROWS", 4)
    if way == "as on a GPU":
        patch.setattr(packed, "_on_gpu", lambda _: True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["kept", "again", "small blocks", "as on a GPU"])
def test_logits_and_all_gradients(layout: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(way, monkeypatch)
    stock = ltg_model(relative_qk_layout=layout)
    model = install(copy.deepcopy(stock))
    expected = torch.cat([stock(x[None]).logits for x in ltg_sequences()])
    logits = model(**ltg_pack(ltg_sequences())).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, logits), gradients(stock, expected))


@pytest.mark.parametrize("way", ["kept", "as on a GPU"])
def test_word_logits_and_all_gradients(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(way, monkeypatch)
    stock = ltg_model(LtgBertForMaskedLM)
    model = copy.deepcopy(stock)
    model.set_attn_implementation("tinyhat")
    expected = torch.cat([stock(x[None]).logits[0] for x in ltg_sequences()])
    logits = model(**ltg_pack(ltg_sequences(), gather=False)).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, logits), gradients(stock, expected))


def test_the_proof_sees_a_table_read_the_wrong_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = packed._Positions.__init__

    def flipped(self: packed._Positions, q: torch.Tensor, k: torch.Tensor, x: Inputs) -> None:
        stock(self, q, k, x._replace(table=x.table.flip(0)))

    model = install(ltg_model())
    assert packing_fault(model, 0, None, {0}) == ""
    monkeypatch.setattr(packed._Positions, "__init__", flipped)
    assert "packed logits differ" in packing_fault(model, 0, None, {0})


def test_the_proof_reaches_shared_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = packed._Positions.__init__

    def coarse(self: packed._Positions, q: torch.Tensor, k: torch.Tensor, x: Inputs) -> None:
        middle = x.table.shape[0] // 2
        near = (torch.arange(x.table.shape[0]) - middle).abs() <= 6
        stock(self, q, k, x._replace(table=torch.where(near, x.table, x.table[middle])))

    model = install(ltg_model())
    monkeypatch.setattr(packed._Positions, "__init__", coarse)
    assert packing_fault(model, 0, None, {0}) != ""


def test_a_padded_batch_without_boundaries() -> None:
    stock = ltg_model()
    model = install(copy.deepcopy(stock))
    ids, mask = ltg_padded(ltg_sequences())
    torch.testing.assert_close(model(ids, mask).logits, stock(ids, mask).logits, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing() -> None:
    """Dropout is on: the layers computed again draw the same masks."""
    plain = install(ltg_model()).train()
    thrifty = copy.deepcopy(plain)
    enable_checkpointing(thrifty)
    found = []
    for model in (plain, thrifty):
        torch.manual_seed(0)
        found.append(gradients(model, model(**ltg_pack(ltg_sequences())).logits))
    assert_same(found[1], found[0])


def test_packed_training_drops_no_probabilities() -> None:
    """Those of relative embeddings and of outputs stay; the one of probabilities is left out."""
    model = install(ltg_model(hidden_dropout_prob=0.0, classifier_dropout=0.0)).train()
    for layer in model.transformer.layers:
        layer.attention.dropout.p = layer.attention.position_dropout.p = 0.0
        assert layer.attention.dropout_prob == 0.1
    pack = ltg_pack(ltg_sequences())
    torch.testing.assert_close(model(**pack).logits, model(**pack).logits)


def test_compile_once_for_all_packs() -> None:
    plain = install(ltg_model(num_hidden_layers=2))
    fast = copy.deepcopy(plain)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast.compile(dynamic=True, backend="aot_eager")
    for lengths in ([9, 30, 3], [12, 12, 5, 7, 7], [20, 4]):
        pack = ltg_pack(ltg_sequences(lengths))
        logits, expected = fast(**pack).logits, plain(**pack).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert_same(gradients(fast, logits), gradients(plain, expected))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # inside peft 0.21
def test_peft() -> None:
    peft = pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    stock = ltg_model()
    model = install(copy.deepcopy(stock))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["in_proj_qk", "up"], init_lora_weights=False)
    models = []
    for one in (stock, model):
        torch.manual_seed(0)
        models.append(peft.get_peft_model(one, config).eval())
    expected = torch.cat([models[0](x[None]).logits for x in ltg_sequences()])
    logits = models[1](**ltg_pack(ltg_sequences())).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert_same(gradients(models[1], logits), gradients(models[0], expected))


def test_the_op_computes_outside_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside it CUDA makes the softmax fp32, and its product with bf16 values fails (seen on an H200)."""
    seen = []
    whole = packed._probabilities

    def watched(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return whole(*arguments)

    monkeypatch.setattr(packed, "_probabilities", watched)
    model = ltg_model()
    assert install_packing(model, 0, None, {0}) == ""
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        model(**ltg_pack(ltg_sequences())).logits.sum().backward()
    assert seen
    assert not any(seen)


def test_bf16_autocast_is_near() -> None:
    model = install(ltg_model())
    pack = ltg_pack(ltg_sequences())
    exact = gradients(model, model(**pack).logits)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(**pack).logits
    found = gradients(model, low.float())
    assert found.keys() == exact.keys()
    whole = torch.cat([g.flatten() for g in exact.values()])
    off = torch.cat([found[name].flatten() for name in exact]) - whole
    assert float(off.norm() / whole.norm()) < 0.05


def inputs(lengths: list[int], first: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    """Random inputs of the op; `first`: only first rows ask."""
    random = torch.Generator().manual_seed(seed)
    heads, width, size, positions = 3, 8, 6, 20
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    cu_query = torch.arange(len(lengths) + 1, dtype=torch.int32) if first else cu
    rows = [len(lengths) if first else sum(lengths), sum(lengths), sum(lengths)]
    qkv = [torch.randn(n, heads, width, generator=random, dtype=dtype) for n in rows]
    tables = [torch.randn(heads, 2 * size - 1, width, generator=random, dtype=dtype) for _ in range(2)]
    table = position_buckets(size, positions) + size - 1
    return Inputs(*qkv, *tables, table, cu_query, cu, 1 if first else max(lengths), max(lengths), (3 * width) ** -0.5)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("way", ["kept", "again", "small blocks", "as on a GPU"])
def test_the_op_against_autograd(way: str, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64, against the padded form's own functions and autograd, sequence by sequence."""
    choose(way, monkeypatch)
    x = inputs([9, 31, 3, 3, 1], first)
    leaves = [t.clone().requires_grad_() for t in x[:5]]
    x = Inputs(*leaves, *x[5:])
    out = packed.attend_disentangled(*x[:3], (*x[3:5], x.table), *x[6:])
    parts = []
    for s in range(len(x.cu_key) - 1):
        q = x.query[x.cu_query[s] : x.cu_query[s + 1]].transpose(0, 1)[None]
        k, v = (t[x.cu_key[s] : x.cu_key[s + 1]].transpose(0, 1)[None] for t in (x.key, x.value))
        index = distance_index(x.table, k.shape[2])
        everyone = k if first else q  # position_bias knows squares only: ask for all and take the first row
        whole = torch.cat([q, everyone[:, :, 1:]], dim=2)
        bias = position_bias(whole, k, x.asked, x.asking, index, x.scale)[:, :, : q.shape[2]]
        scores = q @ k.transpose(2, 3) * x.scale + bias
        parts.append((scores.softmax(-1) @ v)[0].transpose(0, 1))
    expected = torch.cat(parts)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    got = torch.autograd.grad((out * weight).sum(), leaves)
    for ours, theirs in zip(got, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 100))
def test_sequences_do_not_see_each_other(lengths: list[int], seed: int) -> None:
    x = inputs(lengths, seed=seed)
    out = packed.disentangled_attention(*x)
    begin, end = int(x.cu_key[-2]), int(x.cu_key[-1])
    alone = torch.tensor([0, end - begin], dtype=torch.int32)
    last = x._replace(cu_query=alone, cu_key=alone, max_query=end - begin, max_key=end - begin)
    last = last._replace(query=x.query[begin:], key=x.key[begin:], value=x.value[begin:])
    torch.testing.assert_close(packed.disentangled_attention(*last), out[begin:])


# on CPU flex runs uncompiled, forward only; what CUDA compiles is this function
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
def test_flex_forward() -> None:
    x = inputs(LENGTHS, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(attend_flex(x), packed.disentangled_attention(*x), atol=1e-5, rtol=1e-5)
