"""Packed equals one by one: every family, every gradient, and under checkpointing, compile and peft."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny.models import PACKED, tiny_model
from transformers import PreTrainedModel

from tinyhat.encoder import interface
from tinyhat.encoder.gather import segment_means
from tinyhat.encoder.load import enable_checkpointing
from tinyhat.encoder.path import install_packing
from tinyhat.encoder.verify import packing_fault
from tinyhat.errors import UserError

FIRST_POSITION = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}
LENGTHS = [9, 30, 3, 9, 1, 17]  # 30 is longer than modernbert's window


def _sequences(lengths: list[int] = LENGTHS) -> list[torch.Tensor]:
    random = np.random.default_rng(1)
    return [torch.from_numpy(random.integers(5, 200, n)) for n in lengths]


def _pack(sequences: list[torch.Tensor], first_position: int = 0) -> dict:
    lengths = [len(x) for x in sequences]
    return {
        "input_ids": torch.cat(sequences)[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None] + first_position,
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        "max_seqlen": max(lengths),
        "gather": True,
    }


def _install(model: PreTrainedModel, family: str) -> PreTrainedModel:
    assert install_packing(model, FIRST_POSITION.get(family, 0), 64, {0, 1, 2, 3}) == ""
    return model


def _one_by_one(model: torch.nn.Module, sequences: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model(input_ids=x[None], attention_mask=torch.ones_like(x[None])).logits for x in sequences])


def _gradients(model: torch.nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    (logits * weight).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, atol=1e-5 * largest, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("way", ["sdpa by length", "our op"])
def test_logits_and_all_gradients(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 both ways: SDPA, which fp32 takes, and our op, which bf16 takes."""
    if way == "our op":
        monkeypatch.setattr(interface, "SDPA_DTYPES", ())
    stock = tiny_model(family).eval()
    packed = _install(copy.deepcopy(stock), family)
    expected = _one_by_one(stock, _sequences())
    logits = packed(**_pack(_sequences(), FIRST_POSITION.get(family, 0))).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    _assert_same(_gradients(packed, logits), _gradients(stock, expected))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_pooling(pooling: str) -> None:
    stock = tiny_model("modernbert", classifier_pooling=pooling).eval()
    packed = _install(copy.deepcopy(stock), "modernbert")
    expected = _one_by_one(stock, _sequences())
    torch.testing.assert_close(packed(**_pack(_sequences())).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_padded_batch_keeps_its_mask(family: str) -> None:
    """Without boundaries the installed functions are stock SDPA: padding is masked, the window holds."""
    stock = tiny_model(family).eval()
    packed = _install(copy.deepcopy(stock), family)
    ids = torch.nn.utils.rnn.pad_sequence(_sequences(), batch_first=True, padding_value=stock.config.pad_token_id)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    expected = _one_by_one(stock, _sequences())
    torch.testing.assert_close(packed(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-5)
    # and a batch of full rows needs no mask to keep ModernBERT's window
    full = torch.stack(_sequences([30, 30]))
    torch.testing.assert_close(packed(input_ids=full).logits, stock(input_ids=full).logits, atol=1e-5, rtol=1e-5)


def test_token_types() -> None:
    stock = tiny_model("bert").eval()
    packed = _install(copy.deepcopy(stock), "bert")
    types = [(torch.arange(len(x)) >= len(x) // 2).long() for x in _sequences()]
    parts = zip(_sequences(), types, strict=True)
    expected = torch.cat([stock(input_ids=x[None], token_type_ids=t[None]).logits for x, t in parts])
    logits = packed(**_pack(_sequences()), token_type_ids=torch.cat(types)[None]).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_boundaries_without_gather_show_every_token() -> None:
    stock = tiny_model("bert").eval()
    packed = _install(copy.deepcopy(stock), "bert")
    pack = _pack(_sequences()) | {"gather": False}
    hidden = packed.base_model(**pack).last_hidden_state
    expected = torch.cat([stock.base_model(input_ids=x[None]).last_hidden_state[0] for x in _sequences()])
    torch.testing.assert_close(hidden[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_gradient_checkpointing(family: str) -> None:
    """Dropout is on: the layers computed again draw the same masks."""
    plain = _install(tiny_model(family), family)
    thrifty = copy.deepcopy(plain)
    enable_checkpointing(thrifty)
    pack = _pack(_sequences())
    found = []
    for model in (plain, thrifty):
        torch.manual_seed(0)
        found.append(_gradients(model, model(**pack).logits))
    _assert_same(found[1], found[0])


def test_gradient_checkpointing_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="AlbertForSequenceClassification has no such mode"):
        enable_checkpointing(tiny_model("albert"))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_compile_once_for_all_packs(family: str) -> None:
    plain = _install(tiny_model(family).eval(), family)
    fast = copy.deepcopy(plain)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast.compile(dynamic=True, backend="aot_eager")  # everything but the C++ compiler, which takes a minute
    for lengths in ([9, 30, 3], [12, 12, 5, 7, 7], [20, 4]):
        pack = _pack(_sequences(lengths))
        logits, expected = fast(**pack).logits, plain(**pack).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        _assert_same(_gradients(fast, logits), _gradients(plain, expected))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # inside peft 0.21
def test_peft() -> None:
    peft = pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    stock = tiny_model("bert").eval()
    packed = _install(copy.deepcopy(stock), "bert")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    models = []
    for model in (stock, packed):
        torch.manual_seed(0)
        models.append(peft.get_peft_model(model, config).eval())
    expected = _one_by_one(models[0], _sequences())
    logits = models[1](**_pack(_sequences())).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    gradients = _gradients(models[1], logits)
    assert any("lora_A" in name and "layer.1" in name and "query" in name for name in gradients)
    _assert_same(gradients, _gradients(models[0], expected))


def test_bf16_autocast_is_near() -> None:
    packed = _install(tiny_model("bert").eval(), "bert")
    pack = _pack(_sequences())
    with torch.autocast("cpu", torch.bfloat16):
        low = packed(**pack).logits
    torch.testing.assert_close(low.float(), packed(**pack).logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_bf16_stream(family: str) -> None:
    """Under autocast every hidden state is bf16, its gradients stay near fp32's; without autocast nothing changes."""
    packed = _install(tiny_model(family).eval(), family)
    pack = _pack(_sequences()) | {"output_hidden_states": True}
    expected = packed(**pack)
    assert {h.dtype for h in expected.hidden_states} == {torch.float32}
    wanted = _gradients(packed, expected.logits)
    with torch.autocast("cpu", torch.bfloat16):
        low = packed(**pack)
    assert {h.dtype for h in low.hidden_states} == {torch.bfloat16}
    found = _gradients(packed, low.logits.float())
    size = sum(float(g.square().sum()) for g in wanted.values())
    off = sum(float((found[n] - g).square().sum()) for n, g in wanted.items())
    assert (off / size) ** 0.5 < 0.03


def test_attention_dropout_is_not_applied_to_packs() -> None:
    packed = _install(tiny_model("bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0), "bert").train()
    pack = _pack(_sequences())
    torch.testing.assert_close(packed(**pack).logits, packed(**pack).logits)
    assert packed.config.attention_probs_dropout_prob == 0.5


def test_deep_copy_computes_with_its_own_weights() -> None:
    packed = _install(tiny_model("bert").eval(), "bert")
    twin = copy.deepcopy(packed)
    before = twin(**_pack(_sequences())).logits
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(**_pack(_sequences())).logits, before)


def test_saves_a_stock_checkpoint(tmp_path: Path) -> None:
    stock = tiny_model("roberta")
    packed = _install(copy.deepcopy(stock), "roberta")
    stock.save_pretrained(tmp_path / "a")
    packed.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_mobilebert_is_refused_and_left_as_it_was() -> None:
    model = tiny_model("mobilebert")
    twin = copy.deepcopy(model)
    assert "packed logits differ" in install_packing(model, 0, 64, {0})
    assert model.config._attn_implementation == twin.config._attn_implementation
    ids = _sequences()[1][None]
    torch.testing.assert_close(model.eval()(input_ids=ids).logits, twin.eval()(input_ids=ids).logits, atol=0, rtol=0)


@pytest.mark.parametrize("break_it", ["positions", "boundaries", "gradient"])
def test_the_proof_sees_a_fault(break_it: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _install(tiny_model("roberta"), "roberta")
    if break_it == "positions":
        assert "logits differ" in packing_fault(model, 1, 64, {0, 1})
        return
    honest = interface.attend

    def leaky(q, k, v, cu_q, cu_k, *rest):
        if break_it == "boundaries":  # sequence 0 sees sequence 1
            keep = [i for i in range(len(cu_k)) if i != 1]
            cu_q, cu_k = (cu_q[keep], cu_k[keep]) if len(q) == len(k) else (cu_q, cu_k)
        return honest(q, k if break_it == "boundaries" else k.detach(), v, cu_q, cu_k, *rest)

    monkeypatch.setattr(interface, "attend", leaky)
    wanted = "logits differ" if break_it == "boundaries" else "gradients differ"
    assert wanted in packing_fault(model, 2, 64, {0, 1})


def test_the_proof_leaves_no_trace() -> None:
    model = tiny_model("bert").train()
    model.bert.embeddings.eval()  # a mixed state must come back mixed
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    weights = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    _install(model, "bert")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for n, p in model.named_parameters() if n != "classifier.weight")
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    torch.testing.assert_close(model.state_dict(), weights, atol=0, rtol=0)


def test_segment_means() -> None:
    hidden = torch.randn(10, 4)
    cu = torch.tensor([0, 3, 4, 10], dtype=torch.int32)
    expected = torch.stack([hidden[0:3].mean(0), hidden[3], hidden[4:10].mean(0)])
    torch.testing.assert_close(segment_means(hidden, cu), expected)
