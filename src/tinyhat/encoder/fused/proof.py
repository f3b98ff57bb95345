"""Whether the kernels are right on this GPU: compared with float64, once for each width and dtypes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import functional

from tinyhat.encoder.fused.attention import Pack, attention_backward, attention_forward
from tinyhat.encoder.fused.launch import column_sums
from tinyhat.encoder.fused.ops import bias_gelu, dropout_add_norm
from tinyhat.encoder.interface import softmax_in

RATE, EPS = 0.1, 1e-5  # of dropout and norm in the proof
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # rounding alone: 1e-7, 4e-3, 3e-4
Kernel = Literal["norm", "gelu", "sums", "attention"]
Tensors = list[torch.Tensor]


@lru_cache
def proven(kernel: Kernel, device: torch.device, width: int, dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Return whether `kernel` is right for such rows and weights on `device`; where not, say why in one warning.

    Args:
        kernel: which.
        device: a GPU.
        width: columns.
        dtype: of the hidden states.
        stored: of biases and norm weights.
    """
    try:
        off = fused_error(kernel, device, width, dtype, stored)
    except Exception as error:
        # whatever a compiler or driver has to say: the stock layers are always there
        fault = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    else:
        if off <= TOLERANCE.get(dtype, 0.0):
            return True
        fault = f"it differs from float64 by {off:.1e}"
    text = f"the fused {kernel} kernel is not used on {device} for width {width} in {dtype}, torch's are: {fault}"
    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return False


def fused_error(
    kernel: Kernel, device: torch.device, width: int, dtype: torch.dtype, stored: torch.dtype, rows: int = 3001
) -> float:
    """Return the largest relative error of outputs and gradients against float64; infinity for a wrong dropout rate.

    The norm is tried with dropout, without, and as in prediction: each is a kernel of its own. Random state, modes,
    autocast, and hooks on saved tensors (checkpointing) around the call neither see it nor change it.

    Args:
        kernel: as for `proven`, like the next four.
        device: see there.
        width: see there.
        dtype: see there.
        stored: see there.
        rows: of the random input; 3,001 are more than programs that sum over rows read at a time (of 768 columns).
    """
    with (
        torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(),
        torch.autocast(device.type, enabled=False), torch.autograd.graph.saved_tensors_hooks(_same, _same),
    ):  # fmt: skip
        _seed(0)
        shapes = ((rows, width), (width,), (rows, width), (width,), (width,))
        inputs = [torch.randn(shape).to(device, dtype if len(shape) > 1 else stored) for shape in shapes]
        direction = torch.randn(shapes[0]).to(device, dtype)
        if kernel == "sums":
            three = [direction, 2 * direction, inputs[0]]
            return _off([(column_sums(*three), torch.stack([x.double().sum(0) for x in three]))])
        if kernel == "attention":
            return _attention_error(inputs[0], inputs[2], direction)
        if kernel == "gelu":
            return _compare(lambda x: bias_gelu(*x), lambda x: functional.gelu(x[0] + x[1]), inputs[:2], direction)
        errors = [*_norm_errors(inputs, direction, RATE), *_norm_errors(inputs, direction, 0.0)]
        exact = _exact(torch.ones_like(direction, dtype=torch.float64), 0.0)([x.double() for x in inputs])
        errors.append(_off([(_norm(inputs, 0.0), exact)]))  # nothing requires a gradient
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def _attention_error(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> float:
    """Return it for two heads of three sequences; other dtypes than the kernels' go the way they always go."""
    rows = len(a)
    boundaries = torch.tensor(sorted({0, rows // 2, rows - rows // 3, rows}), dtype=torch.int32)
    pack, scale = Pack(boundaries.to(a.device), int(boundaries.diff().max())), a.shape[1] ** -0.5
    *asked, grad = (torch.stack(pair, 1) for pair in ((a, b), (b, c), (c, a), (b, a)))
    with softmax_in(None):  # whatever the plan is: the proof is kept
        attended = attention_forward(asked, pack, scale, keeps=True, direct=True)
        grads = attention_backward(grad, *attended[1:], pack, scale)
        exact = attention_forward([x.double() for x in asked], pack, scale, keeps=True, direct=False)
        exact_grads = attention_backward(grad.double(), *exact[1:], pack, scale)
    return _off([(attended.out, exact.out), *zip(grads, exact_grads, strict=True)])


def _norm_errors(inputs: Tensors, direction: torch.Tensor, rate: float) -> list[float]:
    mask = _mask(inputs, rate)
    # counted: a GPU's mean multiplies with 1 / n, and n times that need not be 1
    dropped = float((1 - mask).sum()) / mask.numel()
    far = abs(dropped - rate) > 5 * (rate * (1 - rate) / mask.numel()) ** 0.5
    return [math.inf if far else 0.0, _compare(lambda x: _norm(x, rate), _exact(mask, rate), inputs, direction)]


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _seed(seed: int) -> None:
    """Seed the CPU generator alone: `torch.manual_seed` would seed every GPU's, in the middle of a step."""
    torch.default_generator.manual_seed(seed)


def _norm(x: Tensors, rate: float) -> torch.Tensor:
    _seed(1)
    return dropout_add_norm(x[0], x[1], x[2], x[3], x[4], rate, EPS)


def _exact(mask: torch.Tensor, rate: float) -> Callable[[Tensors], torch.Tensor]:
    def norm(x: Tensors) -> torch.Tensor:
        dropped = (x[0] + x[1]) * mask / (1 - rate) + x[2]
        return functional.layer_norm(dropped, mask.shape[1:], x[3], x[4], EPS)

    return norm


def _mask(inputs: Tensors, rate: float) -> torch.Tensor:
    """Return what the seed of `_norm` keeps, 0 or 1: among ones, what was dropped is far below the mean of its row."""
    hidden, bias, residual, weight, norm_bias = inputs
    ones = [torch.ones_like(hidden), 0 * bias, 0 * residual, torch.ones_like(weight), 0 * norm_bias]
    return (_norm(ones, rate) > -0.05).double()


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
    for a, b in zip(low, high, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        pairs.append((a.grad, b.grad))
    return _off(pairs)


def _off(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the largest relative error; what is no number stays none."""
    return float(torch.stack([(a.double() - b).norm() / b.norm() for a, b in pairs]).max())
