"""LAMB against a float64 reference, tensor by tensor, and what pretraining gives it to move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tinyhat.config import PretrainConfig, TrainConfig
from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM
from tinyhat.errors import UserError
from tinyhat.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from tinyhat.train.lamb import Lamb
from tinyhat.train.optim import build_optimizer, rate_factor
from tinyhat.train.precision import choose_train_plan


class Reference:
    """You et al. 2020, algorithm 2, in float64, written from the paper."""

    def __init__(self, weights, rate, decay, beta1=0.9, beta2=0.98, eps=1e-6):
        self.weights = [w.astype(np.float64) for w in weights]
        self.first = [np.zeros_like(w) for w in self.weights]
        self.second = [np.zeros_like(w) for w in self.weights]
        self.rate, self.decay, self.betas, self.eps, self.steps = rate, decay, (beta1, beta2), eps, 0

    def step(self, gradients):
        self.steps += 1
        beta1, beta2 = self.betas
        for i, gradient in enumerate(gradients):
            g = gradient.astype(np.float64)
            self.first[i] = beta1 * self.first[i] + (1 - beta1) * g
            self.second[i] = beta2 * self.second[i] + (1 - beta2) * g**2
            m = self.first[i] / (1 - beta1**self.steps)
            v = self.second[i] / (1 - beta2**self.steps)
            u = m / (np.sqrt(v) + self.eps) + self.decay * self.weights[i]
            size, move = np.linalg.norm(self.weights[i]), np.linalg.norm(u)
            ratio = size / move if self.decay and size and move else 1.0
            self.weights[i] = self.weights[i] - self.rate * ratio * u


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_fifty_steps_equal_the_reference(decay):
    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (5,), (2, 2, 2))]
    weights.append(np.zeros((3, 3), np.float32))  # no norm to scale to: the ratio is 1
    ours = [nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
    optimizer = Lamb(ours, lr=0.01, weight_decay=decay)
    reference = Reference(weights, 0.01, decay)
    for step in range(50):
        gradients = [random.standard_normal(w.shape).astype(np.float32) * (0 if step == 7 else 1) for w in weights]
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        reference.step(gradients)
    for parameter, expected in zip(ours, reference.weights, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-5, atol=2e-6)


def test_a_weight_without_gradient_stays_and_another_without_norm_moves():
    still, moved = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = Lamb([still, moved], lr=0.5)
    moved.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2))
    assert torch.allclose(moved, torch.full((2, 2), -0.5))  # Adam's first step, ratio 1


def test_a_step_is_as_long_as_the_rate_says_whatever_the_gradient():
    random = torch.Generator().manual_seed(0)
    for scale in (1e-4, 1.0, 1e4):
        weight = nn.Parameter(torch.randn(8, 8, generator=random))
        before = weight.detach().clone()
        optimizer = Lamb([weight], lr=0.01, weight_decay=0.1)
        weight.grad = torch.randn(8, 8, generator=random) * scale
        optimizer.step()
        moved = (weight.detach() - before).norm() / before.norm()
        assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))

    def train(module, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            module(torch.randn(4, 6)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, first, second = model(), model(), model()
    train(whole, Lamb(whole.parameters()), range(6))
    optimizer = Lamb(first.parameters())
    train(first, optimizer, range(3))
    save_checkpoint(tmp_path, first, optimizer, Progress(step=3))
    resumed = Lamb(second.parameters())
    assert load_checkpoint(tmp_path, second, resumed, pytest.fail) is not None
    train(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_pretraining_decays_matrices_other_than_embeddings():
    model = LtgBertForMaskedLM(
        LtgBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    )
    optimizer = build_optimizer(model, PretrainConfig(), 16)
    assert isinstance(optimizer, Lamb)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert set(groups) == {0.1, 0.0}
    assert {n for n in names.values() if "embedding" in n} <= groups[0.0]
    assert all(n.endswith("bias") or "embedding" in n or "layer_norm" in n for n in groups[0.0])
    assert {n.split(".")[-2] for n in groups[0.1]} == {"in_proj_qk", "in_proj_v", "out_proj", "up", "down", "dense"}
    assert sum(map(len, groups.values())) == len(names)
    assert {g["base_lr"] for g in optimizer.param_groups} == {0.01}
    adamw = build_optimizer(model, PretrainConfig(optimizer="adamw"), 16)
    assert isinstance(adamw, torch.optim.AdamW)
    assert {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in adamw.param_groups} == groups
    with pytest.raises(UserError, match="bf16_sr: LAMB keeps weights"):
        build_optimizer(model, PretrainConfig(), 16, choose_train_plan("bf16_sr", torch.device("cpu")))


def test_the_published_schedule_warms_up_and_ends_at_a_tenth():
    config = PretrainConfig()
    factors = [rate_factor(step, 1000, config) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 16)
    assert factors[15] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)
    assert factors[508] == pytest.approx(0.55, abs=2e-3)
    assert rate_factor(999, 1000, TrainConfig(schedule="cosine")) == pytest.approx(0.0, abs=1e-3)
