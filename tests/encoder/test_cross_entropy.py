"""Cross-entropy in slices is cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tinyhat.encoder import cross_entropy
from tinyhat.encoder.cross_entropy import token_losses


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_torchs_in_float64(monkeypatch, rows, dtype):
    monkeypatch.setitem(cross_entropy.SLICE, "cpu", rows * 50)
    random = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(11, 50, generator=random)).to(dtype).requires_grad_()
    targets, weights = torch.randint(50, (11,), generator=random), torch.randn(11, generator=random).double()
    losses = token_losses(logits, targets)
    (losses * weights).sum().backward()
    exact = logits.detach().double().requires_grad_()
    expected = functional.cross_entropy(exact, targets, reduction="none")
    (expected * weights).sum().backward()
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert logits.grad.dtype == dtype
    tolerance = 5e-3 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance / 10)


def test_gradients_by_finite_differences():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda x: token_losses(x, targets), (logits,))


def test_nothing_asked_and_extreme_logits():
    empty = torch.zeros(0, 6, requires_grad=True)
    token_losses(empty, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert empty.grad.shape == (0, 6)
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    losses = token_losses(logits, torch.tensor([1]))
    losses.sum().backward()
    assert losses.item() == pytest.approx(2e4)
    assert torch.isfinite(logits.grad).all()
