"""Rates rise, fall and end where the schedules say; decay touches matrices only; the head has its own rate."""

from __future__ import annotations

import pytest
from tests.tiny.models import tiny_model

from tinyhat.config import TrainConfig
from tinyhat.train.optim import base_rate, build_optimizer, rate_factor, set_rate


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_schedules_stay_between_zero_and_one_and_move(schedule, steps):
    config = TrainConfig(schedule=schedule, warmup_ratio=0.1)
    factors = [rate_factor(step, steps, config) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors), "no step is wasted at rate 0"
    if steps == 100:
        assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
        assert factors[10] == 1.0
        assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
        assert (factors[-1] == 1.0) == (schedule == "constant")


def test_wsd_stays_until_its_decay():
    config = TrainConfig(schedule="wsd", warmup_ratio=0.0, decay_ratio=0.25)
    factors = [rate_factor(step, 100, config) for step in range(100)]
    assert factors[:75] == [1.0] * 75
    assert factors[75:] == pytest.approx([(100 - s) / 25 for s in range(75, 100)])


def test_inverse_square_root_is_vaswanis():
    config = TrainConfig(schedule="inverse_sqrt", warmup_ratio=0.1)
    factors = [rate_factor(step, 400, config) for step in range(400)]
    reference = [min(t**-0.5, t * 40**-1.5) for t in range(1, 401)]
    assert factors == pytest.approx([r / max(reference) for r in reference])


def test_the_slanted_triangle_is_howards_and_ruders():
    config = TrainConfig(schedule="slanted_triangular", warmup_ratio=0.1)
    steps, cut, ratio = 200, 20, 32

    def reference(t):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (steps / cut - 1))
        return (1 + p * (ratio - 1)) / ratio

    assert [rate_factor(t, steps, config) for t in range(steps)] == pytest.approx([reference(t) for t in range(steps)])


def test_one_cycle_rises_falls_and_dies_out():
    factors = [rate_factor(step, 1000, TrainConfig(schedule="one_cycle")) for step in range(1000)]
    top = factors.index(max(factors))
    assert 440 <= top <= 460
    assert factors[top] == pytest.approx(1, abs=2e-3)
    assert factors[0] == pytest.approx(0.1, abs=2e-3)
    assert factors[900] == pytest.approx(0.1, abs=2e-3)
    assert factors[-1] == pytest.approx(1e-3, abs=1e-3)
    assert factors == sorted(factors[: top + 1]) + sorted(factors[top + 1 :], reverse=True)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "slanted_triangular", "one_cycle"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_further_schedules_stay_between_zero_and_one(schedule, steps, warmup):
    config = TrainConfig(schedule=schedule, warmup_ratio=warmup)
    assert all(0 < rate_factor(step, steps, config) <= 1 for step in range(steps))


def test_groups_hold_every_parameter_once_with_its_rate_and_decay():
    model = tiny_model("bert", "multi", 5, seed=0)
    config = TrainConfig(learning_rate=1e-4, head_rate=7.0, weight_decay=0.1)
    optimizer = build_optimizer(model, config, 32)
    names = {id(p): n for n, p in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in seen
            seen[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert set(seen) == set(names.values())
    for name, parameter in model.named_parameters():
        rate = 7e-4 if name.startswith("classifier") else 1e-4
        assert seen[name] == pytest.approx((rate, 0.1 if parameter.ndim >= 2 else 0.0)), name
    set_rate(optimizer, 0.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == pytest.approx([5e-5, 3.5e-4])


def test_the_default_rate_falls_with_width():
    assert base_rate(TrainConfig(), 768) == pytest.approx(5e-5)
    assert base_rate(TrainConfig(), 384) == pytest.approx(2e-4)
    assert base_rate(TrainConfig(learning_rate=1e-3), 384) == 1e-3
