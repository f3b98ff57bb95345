"""Losses for rare labels equal their papers' formulas, written densely in float64; sampling draws what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from tests.tiny.scores import sparse_targets

from tinyhat.config import TrainConfig
from tinyhat.data.packing import StepPlan
from tinyhat.head.imbalance import build_loss, class_weights, pos_weights, sampling
from tinyhat.head.losses import document_losses
from tinyhat.types import Targets


def multi(seed=0, documents=40, labels=6):
    rng = np.random.default_rng(seed)
    hot = rng.random((documents, labels)) < 1 / (1.5 + np.arange(labels))
    return hot, torch.from_numpy(rng.normal(0, 3, hot.shape))


def single(seed=0, documents=40, labels=6):
    rng = np.random.default_rng(seed)
    classes = rng.choice(labels, documents, p=np.arange(1, labels + 1) / (labels * (labels + 1) / 2))
    return classes.astype(np.int64), torch.from_numpy(rng.normal(0, 3, (documents, labels)))


def same(loss, logits, targets, expected):
    torch.testing.assert_close(loss(logits, targets).double(), expected, rtol=2e-5, atol=2e-5)


def test_nothing_asked_for_is_the_plain_loss():
    hot, _ = multi()
    assert build_loss(TrainConfig(), sparse_targets(hot)) is document_losses


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_focal_and_pos_weight_of_several_labels(gamma, cap):
    hot, x = multi()
    y, p = torch.from_numpy(hot).double(), torch.sigmoid(x)
    weight = torch.ones(6).double()
    if cap:
        weight = torch.from_numpy(np.clip((len(hot) - hot.sum(0)) / hot.sum(0), 1, cap))
    expected = (y * weight * (1 - p) ** gamma * -p.log() + (1 - y) * p**gamma * -(1 - p).log()).sum(1)
    config = TrainConfig(loss="focal", focal_gamma=gamma, pos_weight=cap)
    same(build_loss(config, sparse_targets(hot)), x, sparse_targets(hot), expected)


def test_pos_weight_is_torchs():
    hot, x = multi()
    weight = torch.from_numpy(pos_weights(sparse_targets(hot), 4.0)).double()
    y = torch.from_numpy(hot).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, y, pos_weight=weight, reduction="none").sum(1)
    same(build_loss(TrainConfig(pos_weight=4.0), sparse_targets(hot)), x, sparse_targets(hot), expected)
    assert weight.min() >= 1
    assert weight.max() == 4


def test_smoothing_of_several_labels_moves_both_targets():
    hot, x = multi()
    y = torch.from_numpy(hot).double() * 0.8 + 0.1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none").sum(1)
    same(build_loss(TrainConfig(label_smoothing=0.2), sparse_targets(hot)), x, sparse_targets(hot), expected)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_asymmetric_loss(margin):
    hot, x = multi()
    y, p = torch.from_numpy(hot).double(), torch.sigmoid(x)
    shifted = (p - margin).clamp(min=0)
    expected = (y * -p.log() + (1 - y) * shifted**4 * -(1 - shifted).log()).sum(1)
    config = TrainConfig(loss="asymmetric", asymmetric_margin=margin)
    same(build_loss(config, sparse_targets(hot)), x, sparse_targets(hot), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.1), (2.0, 0.0), (0.5, 0.1)])
def test_one_label_with_weights_focusing_and_smoothing(weighted, gamma, smoothing):
    classes, x = single()
    targets = Targets("single", 6, classes)
    log = x.log_softmax(1)
    true = log[torch.arange(40), torch.from_numpy(classes)]
    expected = -(1 - smoothing) * true - smoothing * log.mean(1)
    expected = expected * (1 - true.exp()) ** gamma
    if weighted:
        balanced = compute_class_weight("balanced", classes=np.arange(6), y=classes)
        np.testing.assert_allclose(class_weights(targets), balanced, rtol=1e-6)
        expected = expected * torch.from_numpy(balanced)[torch.from_numpy(classes)]
    config = TrainConfig(
        loss="focal" if gamma else "auto", focal_gamma=gamma, label_smoothing=smoothing, class_weights=weighted
    )
    same(build_loss(config, targets), x, targets, expected)


def test_a_label_outside_the_space_costs_nothing():
    targets = Targets("single", 6, np.array([2, -1]))
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    for config in (TrainConfig(loss="focal"), TrainConfig(label_smoothing=0.1), TrainConfig(class_weights=True)):
        losses = build_loss(config, targets)(x, targets)
        assert losses[0] > 0
        assert losses[1] == 0


@pytest.mark.parametrize("config", [
    TrainConfig(loss="focal", focal_gamma=0.5), TrainConfig(loss="asymmetric"), TrainConfig(pos_weight=2.0),
    TrainConfig(loss="asymmetric", asymmetric_margin=0.0, asymmetric_gamma=0.5),
])  # fmt: skip
def test_gradients_are_finite_for_very_sure_logits(config):
    hot, _ = multi()
    x = torch.from_numpy(np.where(hot, 60.0, -60.0)).float()
    x = torch.cat([x, -x, torch.zeros_like(x)]).requires_grad_(True)
    targets = sparse_targets(np.concatenate([hot] * 3))
    loss = build_loss(config, targets)(x, targets)
    assert bool(torch.isfinite(loss).all())
    loss.sum().backward()
    assert bool(torch.isfinite(x.grad).all())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.25, 0.5, 1.0]))
def test_sampling_weighs_documents_by_their_rarest_label(seed, exponent):
    hot, _ = multi(seed, documents=30)
    chances = sampling(sparse_targets(hot), exponent)
    assert chances is not None
    counts = hot.sum(0)
    rarest = np.array([counts[row].min() if row.any() else counts.max() for row in hot], dtype=float)
    np.testing.assert_allclose(chances, rarest**-exponent / (rarest**-exponent).sum())


def test_balanced_sampling_makes_labels_equally_frequent():
    classes, _ = single(documents=400)
    targets = Targets("single", 6, classes)
    plan = StepPlan(np.full(400, 10), 6, 50, 1000, seed=3, draw=sampling(targets, 1.0))
    rows = np.concatenate([plan.batch(step) for step in range(80)])
    shares = np.bincount(classes[rows], minlength=6) / len(rows)
    np.testing.assert_allclose(shares, 1 / 6, atol=0.03)
    again = StepPlan(np.full(400, 10), 6, 50, 1000, seed=3, draw=sampling(targets, 1.0))
    np.testing.assert_array_equal(again.batch(17), plan.batch(17))
    assert sampling(targets, 0.0) is None
