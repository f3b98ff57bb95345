from __future__ import annotations

import pytest
import torch
from tests.tiny.models import tiny_model
from torch import nn

from tinyhat.encoder.dropout import FastDropout, install_fast_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_and_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 333, dtype=dtype)
    out = FastDropout(p)(x)
    count = x.numel()
    dropped = float((out == 0).float().mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1 / 65536
    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
    # neighbours, which share one 64-bit draw, are dropped independently
    zero = (out == 0).float().flatten()
    for distance in (1, 2, 3, 4):
        both = float((zero[:-distance] * zero[distance:]).mean())
        assert abs(both - p * p) < 6 * (p * p * (1 - p * p) / count) ** 0.5 + 1e-3


@pytest.mark.parametrize("p", [1e-6, 0.999999, 1.0])
def test_rates_at_the_ends(p: float) -> None:
    out = FastDropout(p)(torch.ones(20))
    assert float((out == 0).float().mean()) == round(p)


def test_gradient_is_the_mask() -> None:
    x = torch.randn(7, 5, requires_grad=True)
    out = FastDropout(0.4)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x, out)


def test_seeded_and_off_in_evaluation() -> None:
    module, x = FastDropout(0.3), torch.randn(50)
    first, second = (torch.manual_seed(4) and module(x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(module.eval()(x), x)


def test_install_keeps_names_rates_and_weights() -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.25)
    names = [name for name, _ in model.named_modules()]
    weights = model.state_dict()
    install_fast_dropout(model)
    assert [name for name, _ in model.named_modules()] == names
    assert model.bert.encoder.layer[1].output.dropout.p == 0.25
    assert not any(type(module) is nn.Dropout for module in model.modules())
    torch.testing.assert_close(model.state_dict(), weights, atol=0, rtol=0)
