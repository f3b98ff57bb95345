"""On a GPU: both ways to run a packed LTG-BERT equal one sequence at a time, gradients too, for packs of any size."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny.ltg_bert import LAYOUTS, ltg_model, ltg_pack, ltg_sequences

from tinyhat.encoder.ltg_bert import packed
from tinyhat.encoder.path import install_packing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PACKS = ([70, 300, 5], [9, 45, 3, 9, 1, 17], [130, 130, 41])
# heads of 16: the narrowest FlexAttention takes
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def gradients(model: torch.nn.Module, out: torch.Tensor) -> torch.Tensor:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.device)
    model.zero_grad()
    (out * weight).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def on_gpu(pack: dict) -> dict:
    return {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in pack.items()}


# dynamo and inductor tell of their own deprecations when flex is compiled
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["blocks", "flex"])
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_logits_and_gradients(way: str, layout: str, low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CUDA_WAY", way)
    stock = ltg_model(relative_qk_layout=layout, **SIZES)
    model = copy.deepcopy(stock)
    assert install_packing(model, 0, None, {0}) == ""
    stock, model = stock.cuda(), model.cuda()
    close = 0.05 if low else 1e-3  # fp32 products may run as TF32 inside flex
    for lengths in PACKS:
        sequences = ltg_sequences(lengths)
        expected = torch.cat([stock(x[None].cuda()).logits for x in sequences])
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            logits = model(**on_gpu(ltg_pack(sequences))).logits.float()
        assert float((logits - expected).norm() / expected.norm()) < close
        got, right = gradients(model, logits), gradients(stock, expected)
        assert float((got - right).norm() / right.norm()) < close
