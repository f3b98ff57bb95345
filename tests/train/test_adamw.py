"""AdamW for 16-bit weights against float64; rounding, compensation and splitting against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyhat.train.adamw import LowAdamW, join, kahan_add_, round_stochastically, split
from tinyhat.train.update import LossScale

floats = st.floats(-(2.0**100), 2.0**100, width=32, allow_nan=False)
STEPS, RATE = 200, 1e-4


def reference(start, gradients, decay):
    """AdamW in float64 (Loshchilov and Hutter 2019, algorithm 2), written out."""
    w, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for t, g in enumerate(gradients, 1):
        g = g.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - RATE * decay * w
        w = w - RATE * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w


def problem(seed=0):
    random = torch.Generator().manual_seed(seed)
    start = 0.04 * torch.randn(64, 32, generator=random)
    drift = torch.randn(64, 32, generator=random).sign() * 0.3
    gradients = [(drift + 0.1 * torch.randn(64, 32, generator=random)).bfloat16() for _ in range(STEPS)]
    return start, gradients


def run(master="none", rounding="once", states=torch.float32, decay=0.1, seed=0):
    start, gradients = problem()
    weight = torch.nn.Parameter(start.bfloat16())
    originals = {weight: start} if master != "none" else None
    groups = [{"params": [weight], "lr": RATE, "weight_decay": decay}]
    optimizer = LowAdamW(groups, states, master, rounding, originals, seed)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    exact = reference(start if master != "none" else start.bfloat16().float(), gradients, decay)
    return weight.detach().double(), exact, optimizer.state[weight]


@pytest.mark.parametrize("master", ["fp32", "split"])
def test_a_master_follows_float64_and_parameters_are_its_rounding(master):
    weight, exact, state = run(master)
    kept = state["master"] if master == "fp32" else join(weight.bfloat16(), state["master"])
    torch.testing.assert_close(kept.double(), exact, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weight, kept.bfloat16().double(), rtol=2**-8, atol=0)


def error(weight, exact):
    return float((weight - exact).norm() / (exact - problem()[0].double()).norm())


def test_kahan_and_stochastic_rounding_reach_what_rounding_to_nearest_loses():
    stalled = error(*run()[:2])
    compensated = error(*run(rounding="Kahan")[:2])
    random = error(*run(rounding="stochastic")[:2])
    assert stalled > 0.1  # steps below half a unit in the last place are lost, always the same way
    assert compensated < 0.03
    assert random < 0.5 * stalled


def test_kahan_with_its_compensation_is_close_to_float64():
    weight, exact, state = run(rounding="Kahan")
    whole = weight + state["compensation"].double()
    assert error(whole, exact) < 0.5 * error(weight, exact)


def test_stochastic_rounding_has_no_bias():
    exact = problem()[0]
    random = torch.Generator().manual_seed(1)
    count = 4000
    total = torch.zeros_like(exact, dtype=torch.float64)
    for _ in range(count):
        total += round_stochastically(
            exact, torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, generator=random)
        )
    unit = 2.0 ** (torch.floor(torch.log2(exact.abs().double())) - 7)  # distance of neighbouring bf16 numbers
    deviation = (total / count - exact.double()) / (unit * 0.5 / count**0.5)  # in standard errors, at most
    assert float(deviation.abs().max()) < 6
    assert abs(float(deviation.mean())) < 0.15


@given(st.lists(floats, min_size=1, max_size=8), st.integers(0, 65535))
def test_stochastic_rounding_gives_a_neighbour(values, draw):
    x = torch.tensor(values, dtype=torch.float32)
    rounded = round_stochastically(x, torch.full(x.shape, draw, dtype=torch.int32))
    low = (x.view(torch.int32) & -65536).view(torch.float32)
    high = ((x.view(torch.int32) & -65536) + 65536).view(torch.float32)
    exact = low == x
    assert ((rounded.float() == low) | (~exact & (rounded.float() == high))).all()


def test_stochastic_rounding_keeps_nan_and_infinity():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    rounded = round_stochastically(x, torch.full((3,), 65535, dtype=torch.int32))
    assert rounded[0].isnan()
    assert rounded[1:].tolist() == [float("inf"), -float("inf")]


def test_stochastic_rounding_is_the_seeds():
    first, again, other = (run(rounding="stochastic", seed=s)[0] for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@given(st.lists(floats, min_size=1, max_size=8))
def test_split_and_join_are_exact(values):
    x = torch.tensor(values, dtype=torch.float32)
    high, rest = split(x)
    assert torch.equal(join(high, rest), x)
    assert torch.allclose(high.double(), x.double(), rtol=2**-8, atol=1e-38)


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_kahan_sums_small_moves(seed):
    random = torch.Generator().manual_seed(seed)
    weight, compensation = torch.ones(16).bfloat16(), torch.zeros(16).bfloat16()
    exact = torch.ones(16, dtype=torch.float64)
    for _ in range(300):
        move = 1e-4 * torch.rand(16, generator=random)
        kahan_add_(weight, compensation, move)
        exact += move
    assert float((weight.double() + compensation.double() - exact).abs().max()) < 2e-3  # without it all is lost: 0.015


@pytest.mark.parametrize("changes", [{"master": "fp32"}, {"rounding": "Kahan"}, {"rounding": "stochastic"}])
def test_a_layer_that_joins_later_changes_nothing_of_the_others(changes):
    def train(joins):
        """Return the optimiser and two weights, of which the first has gradients from step `joins` on."""
        random = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter((0.04 * torch.randn(8, 8, generator=random)).bfloat16()) for _ in range(2)]
        optimizer = LowAdamW([{"params": weights, "lr": RATE, "weight_decay": 0.1}], torch.float32, **changes)
        for step in range(6):
            for i, weight in enumerate(weights):
                gradient = torch.randn(8, 8, generator=random).bfloat16()
                weight.grad = gradient if i or step >= joins else None
            optimizer.step()
        return optimizer, *weights

    together, late, early = train(4)
    assert [together.state[w]["step"] for w in (late, early)] == [2, 6]
    assert torch.equal(early, train(99)[2])


def test_states_in_bf16_are_bf16():
    _, _, state = run(states=torch.bfloat16)
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16


def test_the_loss_scale_moves_as_torchs_grad_scaler():
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=5)
    ours = LossScale(2.0**16, dynamic=True, interval=5)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    random = torch.Generator().manual_seed(0)
    skipped = 0
    for _ in range(60):
        finite = bool(torch.rand(1, generator=random) > 0.2)
        optimizer.zero_grad()
        theirs.scale(weight.sum() if finite else weight.sum() * float("inf")).backward()
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        skipped += not finite
        assert ours.value == theirs.get_scale()
    assert ours.skipped == skipped > 0
