"""Numeric plans that store weights in low precision, or set how the whole process multiplies, are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinyhat.embed.embedder import load_embedder

TEXTS = ["law court", "fish", "the milk of trade ships, and taxes", "market " * 7]


@pytest.mark.parametrize("plan", ["bf16", "fp16", "bf16_body_fp32_head", "bf16_fp32_norms"])
def test_weights_are_stored_as_the_plan_says(bert, plan):
    embedder = load_embedder(bert, plan=plan)
    embedder.plan.check(embedder.encoder.model, "after loading")
    exact = load_embedder(bert, plan="fp32")
    off = np.abs(embedder.embed(TEXTS) - exact.embed(TEXTS)).max()
    assert 0 < off < 0.2
    assert embedder.fingerprint() == exact.fingerprint(), "the hash is of the file's weights, whatever they became"
    assert embedder.facts()["plan"] == plan


def test_the_precision_of_products_is_set_once_for_all_threads(bert, monkeypatch):
    embedder = load_embedder(bert, plan="tf32", workers=2, budget=8)
    asked = []
    real = torch.set_float32_matmul_precision
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda kind: (asked.append(kind), real(kind)))
    embedder.embed(TEXTS * 4)
    assert asked == ["high", "highest"]
    assert torch.get_float32_matmul_precision() == "highest"
