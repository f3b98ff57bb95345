"""--exact: the same bits whatever the neighbours, the order, the budget and the workers. And the bf16 path."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from tests.tiny.corpus import tiny_rows

from tinyhat.embed.embedder import load_embedder
from tinyhat.embed.fast import attend_unshifted
from tinyhat.encoder.interface import attend

ROWS = [row["text"] for row in tiny_rows("multi", 40)] + ["law " * 150]


@pytest.mark.parametrize("plan", ["fp32", "amp_bf16"])
def test_exact_vectors_have_the_same_bits_everywhere(bert, plan):
    order = np.random.default_rng(0).permutation(len(ROWS))

    def sha(budget, workers, shuffled):
        embedder = load_embedder(bert, plan=plan, exact=True, budget=budget, workers=workers, max_tokens=48)
        if shuffled:
            vectors = np.empty((len(ROWS), 32), np.float32)
            vectors[order] = embedder.embed([ROWS[i] for i in order])
        else:
            vectors = embedder.embed(ROWS)
        return hashlib.sha256(vectors.tobytes()).hexdigest()

    shas = {sha(b, w, s) for b in (512, 4096, 16384) for w in (1, 2) for s in (False, True)}
    torch.set_num_threads(2)  # of the process, which is none of a pass's business
    try:
        shas.add(sha(4096, 2, True))
    finally:
        torch.set_num_threads(1)
    alone = load_embedder(bert, plan=plan, exact=True, max_tokens=48)
    vectors = np.concatenate([alone.embed([text]) for text in ROWS])
    assert shas == {hashlib.sha256(vectors.tobytes()).hexdigest()}


def test_the_fast_layers_are_as_good_as_stock_ones_in_bf16(bert):
    embedder = load_embedder(bert, plan="amp_bf16", layers="all", combine="concat")
    exact = load_embedder(bert, plan="fp32", layers="all", combine="concat").embed(ROWS)
    if embedder.forward._fast is None:
        pytest.skip("this machine or this torch has no oneDNN linear layers")
    fast = embedder.embed(ROWS)
    embedder.forward._fast = None
    stock = embedder.embed(ROWS)
    assert np.abs(stock - exact).max() > 0
    assert np.linalg.norm(fast - exact) < 1.5 * np.linalg.norm(stock - exact)


@pytest.mark.parametrize("factor", [1.0, 60.0])
def test_attention_without_a_shift(factor):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(40, 4, 8, generator=generator) for _ in range(3))
    cu = torch.tensor([0, 7, 14, 40], dtype=torch.int32)
    expected = attend(factor * q, k, v, cu, cu, 26, 26, 1.0)
    np.testing.assert_allclose(attend_unshifted(factor * q, k, v, cu, 1.0), expected, atol=1e-4)


def test_threads_of_the_process_stay_as_they_were(bert):
    torch.set_num_threads(2)
    try:
        load_embedder(bert, workers=3).embed(ROWS[:3])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_threads_of_the_pool_stay_at_one(bert):
    torch.set_num_threads(2)
    try:
        pool = load_embedder(bert, workers=2)._pool
        assert pool.submit(torch.get_num_threads).result() == 1
        many = torch.ones(512, 512)
        pool.submit(torch.mm, many, many).result()
        assert [pool.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
