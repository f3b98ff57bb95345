"""Whether the kernels of `ops` are right on this GPU: compared with float64, once for each width and dtype."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import functional

from tinyhat.encoder.fused.ops import bias_gelu, dropout_add_norm

RATE = 0.1  # of dropout in the proof
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # rounding alone: 1e-7, 3.4e-3, 4e-4
Kernel = Literal["norm", "gelu"]
Tensors = list[torch.Tensor]


@lru_cache
def proven(kernel: Kernel, device: torch.device, width: int, dtype: torch.dtype) -> bool:
    """Return whether `kernel` is right for rows of `width` on `device`; where not, say why in one warning."""
    try:
        off = fused_error(kernel, device, width, dtype)
    except Exception as error:
        # whatever a compiler or driver has to say: the stock layers are always there
        fault = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    else:
        if off <= TOLERANCE.get(dtype, 0.0):
            return True
        fault = f"it differs from float64 by {off:.1e}"
    text = f"the fused {kernel} kernel is not used on {device} for width {width} in {dtype}, stock layers are: {fault}"
    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return False


def fused_error(kernel: Kernel, device: torch.device, width: int, dtype: torch.dtype, rows: int = 203) -> float:
    """Return the largest relative error of output and gradients against float64; infinity for a wrong dropout rate.

    Random state, modes and autocast are left as they were.

    Args:
        kernel: which.
        device: a GPU.
        width: columns.
        dtype: of the hidden states; biases and norm weights are fp32.
        rows: of the random input; 203 are some programs and a rest.
    """
    fork = torch.random.fork_rng(devices=[])
    with fork, torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        torch.manual_seed(0)
        shapes = ((rows, width), (width,), (rows, width), (width,), (width,))
        inputs = [torch.randn(shape).to(device, dtype if len(shape) > 1 else torch.float32) for shape in shapes]
        direction = torch.randn(shapes[0]).to(device, dtype)
        if kernel == "gelu":
            return _compare(lambda x: bias_gelu(*x), lambda x: functional.gelu(x[0] + x[1]), inputs[:2], direction)
        mask = _mask(inputs)

        def exact(x: Tensors) -> torch.Tensor:
            dropped = (x[0] + x[1]) * mask / (1 - RATE) + x[2]
            return functional.layer_norm(dropped, (width,), x[3], x[4], 1e-5)

        off = _compare(_norm, exact, inputs, direction)
        far = abs(1 - float(mask.mean()) - RATE) > 5 * (RATE * (1 - RATE) / mask.numel()) ** 0.5
        return float("inf") if far else off


def _norm(x: Tensors) -> torch.Tensor:
    torch.manual_seed(1)
    return dropout_add_norm(x[0], x[1], x[2], x[3], x[4], RATE, 1e-5)


def _mask(inputs: Tensors) -> torch.Tensor:
    """Return what the seed of `_norm` keeps, 0 or 1: among ones, what was dropped is far below the mean of its row."""
    hidden, bias, residual, weight, norm_bias = inputs
    ones = [torch.ones_like(hidden), 0 * bias, 0 * residual, torch.ones_like(weight), 0 * norm_bias]
    return (_norm(ones) > -0.05).double()


def _compare(
    fused: Callable[[Tensors], torch.Tensor],
    exact: Callable[[Tensors], torch.Tensor],
    inputs: Tensors,
    direction: torch.Tensor,
) -> float:
    low = [x.clone().requires_grad_() for x in inputs]
    high = [x.double().requires_grad_() for x in inputs]
    got, expected = fused(low), exact(high)
    got.backward(direction)
    expected.backward(direction.double())
    pairs = [(got.detach(), expected.detach())]
    pairs += [(a.grad, b.grad) for a, b in zip(low, high, strict=True) if a.grad is not None and b.grad is not None]
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
