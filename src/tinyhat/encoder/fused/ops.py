"""What stands between the products of a post-norm layer, in one pass over memory each, on a GPU. T rows, D columns.

Stock layers read and write a [T, D] tensor for every bias, dropout, sum and norm, and once more for each in the
backward pass; under autocast they keep it in fp32. That was 95 of the 233 ms of a step of RoBERTa-base on an H200.
Everything between load and store is fp32; what is stored has the dtype of the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

# the fastest of some on an H200 (57,344 rows of 768 and 3,072 columns, bf16); a program of a norm has one warp
PROGRAMS = 1056  # of kernels that sum over rows
BLOCK = {"ROWS": 8, "WIDTH": 512}  # of the others, and what they read at a time where they sum:
SUMMED_BLOCK = {"ROWS": 8, "WIDTH": 256}
LARGEST = 1024  # columns of a norm: a row of 1,280 no longer fits in the registers of a warp (sm_90)


@lru_cache
def available() -> bool:
    """Return whether there are a GPU and Triton, which torch brings along for it."""
    return torch.cuda.is_available() and find_spec("triton") is not None


def dropout_add_norm(
    hidden: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    norm_bias: torch.Tensor,
    rate: float,
    eps: float,
) -> torch.Tensor:
    """Return layer_norm(dropout(hidden + bias) + residual), of the shape and dtype of `hidden`.

    The bits of dropout come from one draw of torch's CPU generator, so that seeds and recomputation hold.

    Args:
        hidden: [..., D], D a multiple of 4 and at most LARGEST; on a processor stock functions compute the same.
        bias: [D], of the product that made `hidden`.
        residual: as `hidden`.
        weight: [D], of the norm.
        norm_bias: [D].
        rate: of dropout, below 1; 0 in evaluation.
        eps: added to the variance.
    """
    if not hidden.is_cuda:
        total = functional.dropout(hidden + bias, rate) + residual
        return functional.layer_norm(total, weight.shape, weight, norm_bias, eps)
    tensors = (hidden, bias, residual, weight, norm_bias)
    keeps = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    out = _DropoutAddNorm.apply(*tensors, rate, eps, keeps)
    assert isinstance(out, torch.Tensor)
    return out


def bias_gelu(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return gelu(hidden + bias), the exact one, of the shape and dtype of `hidden`.

    Args:
        hidden: [..., D]; on a processor stock functions compute the same.
        bias: [D].
    """
    if not hidden.is_cuda:
        return functional.gelu(hidden + bias)
    out = _BiasGelu.apply(hidden, bias)
    assert isinstance(out, torch.Tensor)
    return out


def branch(
    hidden: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] = ()
) -> tuple[torch.Tensor, ...]:
    """Return ``hidden @ weight.T + bias`` for each weight, and behind them `hidden` for whatever else reads it.

    In the backward pass their gradients add up inside the products (`addmm`), from that of the last on: no gradient of
    `hidden` is written alone and added later. Those of the biases are fp32 sums.

    Args:
        hidden: [T, D]; its dtype is that of the products.
        weights: [L, D] each.
        biases: [L] each; none, or as many.
    """
    out = _Branch.apply(hidden, len(weights), *weights, *biases)
    assert isinstance(out, tuple)
    return out


def column_sums(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over the rows of `values`, [T, D]: fp32 [D] on a GPU, of its dtype on a processor."""
    if not values.is_cuda:
        return values.sum(0)
    from tinyhat.encoder.fused import kernels

    values = values.contiguous()
    rows, width = values.shape
    grid = _summing(rows, width)
    sums = torch.empty(grid[0], width, device=values.device)
    with torch.cuda.device_of(values):
        kernels.column_sums[grid](values, sums, rows, D=width, **SUMMED_BLOCK)
    return sums.sum(0)


def _summing(rows: int, width: int) -> tuple[int, int]:
    """Return the grid of a kernel that sums over rows: programs, and blocks of columns."""
    blocks = -(-width // SUMMED_BLOCK["WIDTH"])
    return min(-(-PROGRAMS // blocks), -(-rows // SUMMED_BLOCK["ROWS"])), blocks


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, count: int, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute `branch` of `count` weights and the biases behind them."""
        low = [p.to(hidden.dtype) for p in parameters]
        weights, biases = low[:count], low[count:] or [None] * count
        ctx.save_for_backward(hidden, *weights)
        ctx.dtypes = [p.dtype for p in parameters]
        products = [functional.linear(hidden, w, b) for w, b in zip(weights, biases, strict=True)]
        return *products, hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, *weights = ctx.saved_tensors
        *d_products, d_again = grads
        wanted = ctx.needs_input_grad[2:]
        d_hidden = None
        if ctx.needs_input_grad[0]:
            d_hidden = torch.addmm(d_again, d_products[0], weights[0])
            for d_product, weight in zip(d_products[1:], weights[1:], strict=True):
                d_hidden.addmm_(d_product, weight)
        d_parameters = [d.t() @ hidden if wants else None for d, wants in zip(d_products, wanted, strict=False)]
        d_parameters += [column_sums(d) if w else None for d, w in zip(d_products, wanted[len(weights) :], strict=False)]
        pairs = zip(d_parameters, ctx.dtypes, strict=True)
        return d_hidden, None, *(None if d is None else d.to(dtype) for d, dtype in pairs)


class _DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Compute `dropout_add_norm` of its arguments; `keeps`, behind them: there will be a backward pass."""
        from triton import next_power_of_2

        from tinyhat.encoder.fused import kernels

        hidden, bias, residual, weight, norm_bias, rate, eps, keeps = inputs
        hidden, residual = hidden.contiguous(), residual.contiguous()
        width = hidden.shape[-1]
        rows = hidden.numel() // width
        out = torch.empty_like(hidden)
        kept = torch.empty_like(hidden) if keeps else out
        mean, inverse = torch.empty(2, rows if keeps else 0, device=hidden.device).unbind(0)
        seed = int(torch.randint(1 << 31, ())) if rate else 0
        facts = {
            "D": width,
            "PART": width // 4,
            "WIDTH": next_power_of_2(width // 4),
            "DROPOUT": rate > 0,
        }
        noise = (round(rate * 2**31), 1 / (1 - rate))
        with torch.cuda.device_of(hidden):
            kernels.norm_forward[(rows,)](
                hidden, bias, residual, weight, norm_bias, out, kept, mean, inverse, seed, eps, *noise,
                **facts, KEEP=keeps, num_warps=1,
            )  # fmt: skip
        ctx.save_for_backward(kept, weight, mean, inverse)
        ctx.facts, ctx.seed, ctx.noise = facts, seed, noise
        ctx.dtypes = bias.dtype, weight.dtype, norm_bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from tinyhat.encoder.fused import kernels

        kept, weight, mean, inverse = ctx.saved_tensors
        width = kept.shape[-1]
        programs = min(PROGRAMS, len(mean))
        d_hidden, d_residual = torch.empty_like(kept), torch.empty_like(kept)
        sums = torch.empty(programs, 3, width, device=kept.device)
        with torch.cuda.device_of(kept):
            kernels.norm_backward[(programs,)](
                grads[0].contiguous(), kept, weight, mean, inverse, d_hidden, d_residual, sums, len(mean), ctx.seed,
                *ctx.noise, **ctx.facts, num_warps=1,
            )  # fmt: skip
        d_bias, d_weight, d_norm = (x.to(dtype) for x, dtype in zip(sums.sum(0), ctx.dtypes, strict=True))
        return d_hidden, d_bias, d_residual, d_weight, d_norm, None, None, None


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        from tinyhat.encoder.fused import kernels

        hidden = hidden.contiguous()
        width = hidden.shape[-1]
        rows = hidden.numel() // width
        out = torch.empty_like(hidden)
        grid = (-(-rows // BLOCK["ROWS"]), -(-width // BLOCK["WIDTH"]))
        with torch.cuda.device_of(hidden):
            kernels.gelu_forward[grid](hidden, bias, out, rows, D=width, **BLOCK)
        ctx.save_for_backward(hidden, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from tinyhat.encoder.fused import kernels

        hidden, bias = ctx.saved_tensors
        width = hidden.shape[-1]
        rows = hidden.numel() // width
        grid = _summing(rows, width)
        d_hidden = torch.empty_like(hidden)
        sums = torch.empty(grid[0], width, device=hidden.device)
        with torch.cuda.device_of(hidden):
            kernels.gelu_backward[grid](
                grads[0].contiguous(), hidden, bias, d_hidden, sums, rows, D=width, **SUMMED_BLOCK
            )
        return d_hidden, sums.sum(0).to(bias.dtype)
