"""The rate finder rises by a constant factor, keeps no weights, and reads the steepest fall."""

from __future__ import annotations

import numpy as np
import pytest
from tests.tiny.corpus import tiny_dataset
from tests.tiny.models import save_tiny

from tinyhat.cli.rates import rate_table
from tinyhat.config import build_config
from tinyhat.errors import UserError
from tinyhat.train.find_rate import STEPS, broken, factor, find_rate, read_curve, running_mean


def test_rates_rise_by_a_constant_factor():
    factors = [factor(step) for step in range(STEPS)]
    ratios = np.diff(np.log(factors))
    np.testing.assert_allclose(ratios, ratios[0])
    assert factors[0] == pytest.approx(1e-3)
    assert factors[-1] == pytest.approx(1e3)


def test_a_curve_is_read_where_it_falls_fastest():
    rates = np.geomspace(1e-6, 1e-1, 80)
    losses = 4 - 3 / (1 + np.exp(-3 * (np.log10(rates) + 4)))  # steepest at 1e-4
    losses += np.where(rates > 2e-3, 5 * (np.log10(rates) + 2.7), 0)  # and broken above 2e-3
    curve = read_curve(rates.tolist(), losses.tolist())
    assert 5e-5 < curve.suggested < 8e-4  # the running mean lags
    assert curve.suggested < curve.highest < 1e-2
    assert "try --learning-rate" in rate_table(curve)


def test_a_broken_loss_ends_the_search():
    assert not broken([4.0] * 20)
    assert broken([4.0] * 20 + [90.0] * 3)
    assert running_mean([3.0, 3.0]) == pytest.approx([3.0, 3.0])
    with pytest.raises(UserError, match="broke after 3 steps"):
        read_curve([1e-3, 2e-3, 4e-3], [1.0, 2.0, 3.0])


def test_on_a_tiny_model_it_finds_a_rate_that_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))
    dataset = tiny_dataset(tmp_path / "data", "single")
    model = save_tiny(tmp_path / "model", "bert")
    settings = {"encoder.model": str(model), "reading.max_tokens": 48, "train.plan": "fp32", "train.batch_size": 16}
    curve = find_rate(build_config(None, settings), dataset, lambda _: None)
    assert len(curve.rates) == len(curve.losses) > 20
    assert curve.rates == sorted(curve.rates)
    assert 1e-6 < curve.suggested <= curve.highest < 1
    assert min(curve.losses) < curve.losses[0]
