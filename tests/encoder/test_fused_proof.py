"""The kernels of fused layers are compared with float64 before they are used, and what is wrong is not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tinyhat.encoder import interface
from tinyhat.encoder.fused import proof
from tinyhat.encoder.fused.launch import available

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not available(), reason="needs a GPU")


@pytest.mark.parametrize("fault", [RuntimeError("ptxas fatal"), 0.5, float("inf"), float("nan")], ids=str)
def test_a_kernel_that_is_wrong_or_does_not_compile_is_not_used(monkeypatch, fault):
    def error(*_):
        if isinstance(fault, Exception):
            raise fault
        return fault

    monkeypatch.setattr(proof, "fused_error", error)
    proof.proven.cache_clear()
    asked = ("norm", CPU, 32, torch.float32, torch.float32)
    with pytest.warns(RuntimeWarning, match="fused norm kernel is not used on cpu for width 32"):
        assert not proof.proven(*asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not proof.proven(*asked)  # said once
    proof.proven.cache_clear()


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize("kernel", ["norm", "gelu"])
def test_gradients_that_are_no_numbers_are_seen(monkeypatch, kernel):
    for name in ("bias_gelu", "dropout_add_norm"):
        right = getattr(proof, name)
        monkeypatch.setattr(proof, name, lambda *x, right=right: WrongGradient.apply(right(*x)))
    assert not proof.fused_error(kernel, CPU, 32, torch.float32, torch.float32) <= 1.0


def test_a_proof_within_a_checkpointed_layer_disturbs_nothing(monkeypatch):
    """Recomputation counts saved tensors, and would start a second proof inside the first."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU's generator was seeded"))
    proof.proven.cache_clear()

    def layer(x):
        assert proof.proven("norm", CPU, 32, torch.float32, torch.float32)
        return (x.tanh() * torch.rand(())).sin()

    x = torch.randn(3, 32, requires_grad=True)
    torch.default_generator.manual_seed(5)
    out = checkpoint(layer, x, use_reentrant=False)
    out.sum().backward()
    torch.default_generator.manual_seed(5)
    y = x.detach().clone().requires_grad_()
    (y.tanh() * torch.rand(())).sin().sum().backward()
    assert torch.equal(x.grad, y.grad)
    proof.proven.cache_clear()


def test_the_proof_sees_a_mask_that_is_not_the_one_of_the_forward_pass(monkeypatch):
    """On the processor the stock functions pass it, and what drops other values behind them does not."""
    for kernel in ("gelu", "norm", "sums", "attention"):
        assert proof.fused_error(kernel, CPU, 32, torch.float32, torch.float32) < proof.TOLERANCE[torch.float32]
    right = proof.dropout_add_norm

    def other_mask(*args):
        torch.manual_seed(len(str(args[0].sum())))
        return right(*args)

    monkeypatch.setattr(proof, "dropout_add_norm", other_mask)
    assert proof.fused_error("norm", CPU, 32, torch.float32, torch.float32) > 0.1


@needs_gpu
@pytest.mark.parametrize("width", [32, 100, 384, 768, 1024])
@pytest.mark.parametrize("dtype", list(proof.TOLERANCE))
@pytest.mark.parametrize("kernel", ["norm", "gelu", "sums"])
def test_kernels_equal_float64(kernel, dtype, width):
    where = torch.device("cuda", torch.cuda.current_device())
    for rows in (1, 3, 203, 5001, 10_007):
        for stored in {dtype, torch.float32}:
            assert proof.fused_error(kernel, where, width, dtype, stored, rows) <= proof.TOLERANCE[dtype]


@needs_gpu
@pytest.mark.parametrize("head", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", interface.VARLEN_DTYPES)
def test_flash_kernels_called_as_they_are_equal_float64(dtype, head):
    where = torch.device("cuda", torch.cuda.current_device())
    for rows in (203, 3001):  # one token a sequence has no gradient of queries and keys to compare with
        assert proof.fused_error("attention", where, head, dtype, dtype, rows) <= proof.TOLERANCE[dtype]
