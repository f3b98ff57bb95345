from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyhat.encoder import attention, interface
from tinyhat.encoder.attention import KeptAttention, attention_bytes, packed_attention
from tinyhat.encoder.interface import attend

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=7)


def _boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _random(lengths: list[int], rows: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(sum(lengths))
    shapes = [rows, sum(lengths), sum(lengths)]
    return [torch.randn(n, 2, 8, dtype=dtype, requires_grad=True) for n in shapes]


def _reference(q, k, v, cu_q, cu_k, scale, window):
    """SDPA one sequence at a time, with a boolean mask for the window."""
    parts = []
    for i in range(len(cu_k) - 1):
        heads = [x[a[i] : a[i + 1]].transpose(0, 1) for x, a in ((q, cu_q), (k, cu_k), (v, cu_k))]
        n = heads[1].shape[1]
        mask = (torch.arange(n)[:, None] - torch.arange(n)).abs() < window if window else None
        parts.append(F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [0, 1, 5, 100])
@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS)
def test_equals_sdpa_one_by_one(lengths: list[int], window: int) -> None:
    cu = _boundaries(lengths)
    q, k, v = _random(lengths, sum(lengths))
    out = packed_attention(q, k, v, cu, cu, 0.3, window)
    expected = _reference(q, k, v, cu, cu, 0.3, window)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad((expected * weight).sum(), (q, k, v)))


@pytest.mark.parametrize("window", [0, 5])
@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS)
def test_kept_probabilities_change_no_bit(lengths: list[int], window: int) -> None:
    cu = _boundaries(lengths)
    q, k, v = _random(lengths, sum(lengths), torch.bfloat16)
    out, kept = packed_attention(q, k, v, cu, cu, 0.3, window), KeptAttention.apply(q, k, v, cu, cu, 0.3, window)
    assert torch.equal(out, kept)
    weight = torch.randn_like(out)
    got = torch.autograd.grad((kept * weight).sum(), (q, k, v))
    expected = torch.autograd.grad((out * weight).sum(), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert attention_bytes(q, cu, cu) == sum(n * n for n in lengths) * 2 * 2


def test_attend_keeps_probabilities_only_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    cu = _boundaries([9, 4])
    q, k, v = _random([9, 4], 13, torch.bfloat16)
    assert "KeptAttention" in str(attend(q, k, v, cu, cu, 9, 9, 0.3).grad_fn)
    monkeypatch.setattr(interface, "KEEP_BYTES", attention_bytes(q, cu, cu) - 1)
    assert "KeptAttention" not in str(attend(q, k, v, cu, cu, 9, 9, 0.3).grad_fn)
    with torch.no_grad():
        assert attend(q, k, v, cu, cu, 9, 9, 0.3).grad_fn is None


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, first=st.booleans())
def test_attend_in_single_precision(lengths: list[int], first: bool) -> None:
    """The way fp32 takes: SDPA by groups of equal length."""
    cu = _boundaries(lengths)
    cu_query = torch.arange(len(lengths) + 1, dtype=torch.int32) if first else cu
    q, k, v = _random(lengths, int(cu_query[-1]))
    out = attend(q, k, v, cu_query, cu, max(lengths), max(lengths), 0.3)
    expected = _reference(q, k, v, cu_query, cu, 0.3, 0)
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out.square().sum(), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), (q, k, v)))


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS)
def test_one_query_per_sequence(lengths: list[int]) -> None:
    cu, cu_first = _boundaries(lengths), torch.arange(len(lengths) + 1, dtype=torch.int32)
    q, k, v = _random(lengths, len(lengths))
    out = packed_attention(q, k, v, cu_first, cu, 0.3, 0)
    expected = _reference(q, k, v, cu_first, cu, 0.3, 0)
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out.square().sum(), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), (q, k, v)))


@pytest.mark.parametrize("window", [0, 70])
def test_blocks_of_rows_and_heads(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """A budget of a few kilobytes cuts every sequence into many blocks; the result does not change."""
    lengths = [200, 200, 65, 3]
    cu = _boundaries(lengths)
    q, k, v = _random(lengths, sum(lengths))
    expected = _reference(q, k, v, cu, cu, 0.3, window)
    monkeypatch.setattr(attention, "BLOCK_BYTES", 4096)
    out = packed_attention(q, k, v, cu, cu, 0.3, window)
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out.square().sum(), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), (q, k, v)))


@pytest.mark.parametrize(("window", "rows"), [(0, 11), (3, 11), (0, 3)])
def test_gradcheck(window: int, rows: int) -> None:
    cu = _boundaries([5, 2, 4])
    cu_query = cu if rows == 11 else torch.arange(4, dtype=torch.int32)
    inputs = _random([5, 2, 4], rows)
    assert torch.autograd.gradcheck(lambda q, k, v: packed_attention(q, k, v, cu_query, cu, 0.4, window), inputs)


def test_opcheck() -> None:
    """The fake kernels agree with the real ones: what torch.compile relies on."""
    cu = _boundaries([5, 2, 4])
    q, k, v = _random([5, 2, 4], 11, torch.float32)
    torch.library.opcheck(packed_attention, (q, k, v, cu, cu, 0.4, 3))


@pytest.mark.parametrize("lengths", [[64, 64, 33], [300]])
def test_bf16_is_as_exact_as_sdpa(lengths: list[int]) -> None:
    """Against float64, bf16 errs no more than 1.5 times as much as stock attention in bf16 ("eager") does."""
    cu = _boundaries(lengths)
    exact = _random(lengths, sum(lengths))
    expected = _reference(*exact, cu, cu, 0.3, 0)
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    low = [x.detach().bfloat16().requires_grad_() for x in exact]

    def errors(out: torch.Tensor) -> list[float]:
        found = torch.autograd.grad(out.float().square().sum(), low)
        pairs = [(out, expected), *zip(found, wanted, strict=True)]
        return [float(((a.double() - b).norm() / b.norm()).detach()) for a, b in pairs]

    ours = errors(packed_attention(*low, cu, cu, 0.3, 0))
    eager = errors(_eager(*low, cu, 0.3))
    assert all(a <= 1.5 * b for a, b in zip(ours, eager, strict=True)), (ours, eager)


def _eager(q, k, v, cu, scale):
    parts = []
    for a, b in itertools.pairwise(cu):
        heads = [x[a:b].transpose(0, 1) for x in (q, k, v)]
        p = (heads[0] @ heads[1].transpose(1, 2) * scale).softmax(-1)
        parts.append((p @ heads[2]).transpose(0, 1))
    return torch.cat(parts)


def test_strided_inputs() -> None:
    """ModernBERT hands down query, key and value as slices of one tensor."""
    cu = _boundaries([5, 9, 9])
    together = torch.randn(23, 3, 2, 8, dtype=torch.float64)
    q, k, v = together.unbind(1)
    torch.testing.assert_close(packed_attention(q, k, v, cu, cu, 0.3, 0), _reference(q, k, v, cu, cu, 0.3, 0))
