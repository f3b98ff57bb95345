"""What stands between the products of a post-norm layer, on tensors and without autograd. T rows, D columns.

On a GPU one kernel each: stock layers read and write a [T, D] tensor for every bias, dropout, sum and norm, and once
more for each in the backward pass; under autocast they keep it in fp32. That was 95 of the 233 ms of a step of
RoBERTa-base on an H200. Everything between load and store is fp32; what is stored has the dtype of the product. On a
processor stock functions compute the same, for tests and for the comparison when a model is loaded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.nn import functional

# the fastest of some on an H200 (57,344 rows of 768 and 3,072 columns, bf16); a program of a norm has one warp
PROGRAMS = 1056  # of kernels that sum over rows
BLOCK = {"ROWS": 8, "WIDTH": 512}  # of the others, and what they read at a time where they sum:
SUMMED_BLOCK = {"ROWS": 4, "WIDTH": 256}
LARGEST = 1024  # columns of a norm: a row of 1,280 no longer fits in the registers of a warp (sm_90)


@lru_cache
def available() -> bool:
    """Return whether there are a GPU and Triton, which torch brings along for it."""
    return torch.cuda.is_available() and find_spec("triton") is not None


class Dropout(NamedTuple):
    """A rate below 1, and the seed of what is dropped."""

    rate: float
    seed: int

    @classmethod
    def draw(cls, *rates: float) -> list[Dropout]:
        """Return one for each rate, with one draw of torch's CPU generator, so that seeds and recomputation hold."""
        seeds = torch.randint(1 << 31, (len(rates),)).tolist() if any(rates) else [0] * len(rates)
        return [cls(rate, seed) for rate, seed in zip(rates, seeds, strict=True)]

    def constants(self) -> tuple[int, int, float]:
        """Return seed, what 31 random bits must reach, and scale."""
        return self.seed, round(self.rate * 2**31), 1 / (1 - self.rate)

    def mask(self, like: torch.Tensor) -> torch.Tensor | float:
        """Return 0 or the scale for every place of `like`, on a processor."""
        if not self.rate:
            return 1.0
        kept = torch.rand(like.shape, generator=torch.Generator().manual_seed(self.seed)) >= self.rate
        return kept.to(like.dtype) / (1 - self.rate)


class Normed(NamedTuple):
    """A norm's output and what its backward pass needs: the sum it saw, and rows' mean and 1 / deviation, [2, T]."""

    out: torch.Tensor
    kept: torch.Tensor
    stats: torch.Tensor


def norm_forward(
    hidden: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    dropout: Dropout,
    keeps: bool,
) -> Normed:
    """Return layer_norm(dropout(hidden + bias) + residual), of the shape and dtype of `hidden`.

    Args:
        hidden: [..., D], contiguous; D a multiple of 4 and at most LARGEST.
        bias: [D], of the product that made `hidden`.
        residual: as `hidden`.
        weight: [D], of the norm.
        norm_bias: [D].
        eps: added to the variance.
        dropout: of `hidden`; its seed is asked again in the backward pass.
        keeps: whether there will be one; else only `out` means something.
    """
    if not hidden.is_cuda:
        total = ((hidden + bias) * dropout.mask(hidden) + residual).to(hidden.dtype)
        out, mean, inverse = torch.native_layer_norm(total, weight.shape, weight, norm_bias, eps)
        return Normed(out.to(hidden.dtype), total, torch.stack([mean, inverse]))  # autocast would have it in fp32
    from tinyhat.encoder.fused import kernels

    rows = hidden.numel() // hidden.shape[-1]
    out = torch.empty_like(hidden)
    kept = torch.empty_like(hidden) if keeps else out
    stats = torch.empty(2, rows if keeps else 0, dtype=torch.float32, device=hidden.device)
    with _device_of(hidden):
        kernels.norm_forward[(rows,)](
            hidden, bias, residual, weight, norm_bias, out, kept, stats, rows, *dropout.constants(), eps,
            **_row(hidden, dropout), KEEP=keeps, num_warps=1,
        )  # fmt: skip
    return Normed(out, kept, stats)


def norm_backward(
    grad: torch.Tensor, kept: torch.Tensor, stats: torch.Tensor, weight: torch.Tensor, dropout: Dropout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `hidden` and `residual`, and [3, D]: those of `bias`, `weight` and `norm_bias`.

    Args:
        grad: of the output, contiguous.
        kept: of `norm_forward`, as are the next three.
        stats: see there.
        weight: see there.
        dropout: see there.
    """
    if not grad.is_cuda:
        mean, inverse = stats
        d_sum, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            grad, kept, weight.shape, mean, inverse, weight, torch.zeros_like(weight), [True, True, True]
        )
        d_hidden = d_sum * dropout.mask(d_sum)
        return d_hidden, d_sum, torch.stack([d_hidden.flatten(0, -2).sum(0), d_weight, d_bias])
    from tinyhat.encoder.fused import kernels

    rows = stats.shape[1]
    programs = min(PROGRAMS, rows)
    d_hidden, d_residual = torch.empty_like(kept), torch.empty_like(kept)
    sums = torch.empty(programs, 3, kept.shape[-1], dtype=torch.float32, device=kept.device)
    with _device_of(kept):
        kernels.norm_backward[(programs,)](
            grad, kept, weight, stats, d_hidden, d_residual, sums, rows, *dropout.constants(),
            **_row(kept, dropout), num_warps=1,
        )  # fmt: skip
    return d_hidden, d_residual, sums.sum(0)


def _device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Return the context in which kernels for `tensor` are launched: on its GPU, which mostly is the current one."""
    here = tensor.get_device() == torch.cuda.current_device()
    return nullcontext() if here else torch.cuda.device_of(tensor)


def _row(hidden: torch.Tensor, dropout: Dropout) -> dict[str, int | bool]:
    """Return what a norm's kernels are compiled for."""
    from triton import next_power_of_2

    width = hidden.shape[-1]
    return {"D": width, "WIDTH": next_power_of_2(width // 4), "DROPOUT": dropout.rate > 0}


def gelu_forward(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return gelu(hidden + bias), the exact one, of the shape and dtype of `hidden`.

    Args:
        hidden: [..., D], contiguous.
        bias: [D].
    """
    if not hidden.is_cuda:
        return functional.gelu(hidden + bias).to(hidden.dtype)
    from tinyhat.encoder.fused import kernels

    width = hidden.shape[-1]
    rows = hidden.numel() // width
    out = torch.empty_like(hidden)
    grid = (-(-rows // BLOCK["ROWS"]), -(-width // BLOCK["WIDTH"]))
    with _device_of(hidden):
        kernels.gelu_forward[grid](hidden, bias, out, rows, D=width, **BLOCK)
    return out


def gelu_backward(grad: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `hidden` and `bias`.

    Args:
        grad: of the output, contiguous.
        hidden: of `gelu_forward`, as is the next.
        bias: see there.
    """
    if not grad.is_cuda:
        d_hidden = torch.ops.aten.gelu_backward(grad, (hidden + bias).to(grad.dtype))
        return d_hidden, d_hidden.flatten(0, -2).sum(0)
    from tinyhat.encoder.fused import kernels

    width = hidden.shape[-1]
    rows = hidden.numel() // width
    grid = _summing(rows, width)
    d_hidden = torch.empty_like(hidden)
    sums = torch.empty(grid[0], width, dtype=torch.float32, device=hidden.device)
    with _device_of(hidden):
        kernels.gelu_backward[grid](grad, hidden, bias, d_hidden, sums, rows, D=width, **SUMMED_BLOCK)
    return d_hidden, sums.sum(0)


def column_sums(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
    """Return the sums over the rows of three tensors, each [T, D] and contiguous: [3, D], fp32 on a GPU."""
    if not first.is_cuda:
        return torch.stack([first.sum(0), second.sum(0), third.sum(0)])
    from tinyhat.encoder.fused import kernels

    rows, width = first.shape
    grid = _summing(rows, width)
    sums = torch.empty(grid[0], 3, width, dtype=torch.float32, device=first.device)
    with _device_of(first):
        kernels.column_sums[(*grid, 3)](first, second, third, sums, rows, D=width, **SUMMED_BLOCK)
    return sums.sum(0)


def _summing(rows: int, width: int) -> tuple[int, int]:
    """Return the grid of a kernel that sums over rows: programs, and blocks of columns."""
    blocks = -(-width // SUMMED_BLOCK["WIDTH"])
    return min(-(-PROGRAMS // blocks), -(-rows // SUMMED_BLOCK["ROWS"])), blocks
