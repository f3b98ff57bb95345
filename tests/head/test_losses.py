"""Losses equal torch's dense ones; the output layer starts at the prior and ends on the targets' scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tinyhat.head.losses import document_losses
from tinyhat.head.output import fold_scale, start_at_prior
from tinyhat.types import Targets

MULTI = Targets("multi", 7, np.array([0, 3, 6, 2]), np.array([0, 3, 3, 4]))


def test_multi_label_loss_is_the_summed_bce_of_the_dense_matrix():
    logits = (torch.randn(3, 7, dtype=torch.float64) * 8).float().requires_grad_()
    losses = document_losses(logits, MULTI)
    dense = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(MULTI.dense()), reduction="none").sum(1)
    torch.testing.assert_close(losses, dense)
    ours = torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(dense.sum(), logits)[0])


def test_extreme_logits_stay_finite_and_right():
    logits = torch.tensor([[200.0, -200.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 3)
    dense = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(MULTI.dense()), reduction="none").sum(1)
    torch.testing.assert_close(document_losses(logits, MULTI), dense)


def test_single_label_loss_is_cross_entropy_and_outside_labels_cost_nothing():
    logits = torch.randn(3, 5, requires_grad=True)
    losses = document_losses(logits, Targets("single", 5, np.array([4, -1, 0])))
    assert losses[1] == 0
    torch.testing.assert_close(losses[0], F.cross_entropy(logits[:1], torch.tensor([4])))


def test_regression_loss_is_the_mean_square_over_targets():
    logits = torch.randn(4, 3)
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    losses = document_losses(logits, Targets("regression", 3, values))
    np.testing.assert_allclose(losses.numpy(), ((logits.numpy() - values) ** 2).mean(1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_fp32(dtype):
    assert document_losses(torch.randn(3, 7).to(dtype), MULTI).dtype == torch.float32


def test_the_prior_gives_each_label_its_frequency():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    start_at_prior(layer, np.array([0, 10, 99]), 100)
    probability = torch.sigmoid(layer(torch.randn(1, 4)))[0].detach().numpy()
    np.testing.assert_allclose(probability, [0.5 / 101, 10.5 / 101, 99.5 / 101], rtol=1e-5)


def test_folding_the_scale_gives_the_targets_own_units():
    layer = nn.Linear(4, 2)
    x = torch.randn(5, 4)
    mean, std = np.array([3.0, -1.0], np.float32), np.array([0.5, 20.0], np.float32)
    expected = layer(x).detach() * torch.from_numpy(std) + torch.from_numpy(mean)
    fold_scale(layer, mean, std)
    torch.testing.assert_close(layer(x).detach(), expected)
