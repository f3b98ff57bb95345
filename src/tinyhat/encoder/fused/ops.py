"""What stands between the products of a post-norm layer, in one pass over memory each, on a GPU. T rows, D columns.

Stock layers read and write a [T, D] tensor for every bias, dropout, sum and norm, and once more for each in the
backward pass; under autocast they keep it in fp32. That was 95 of the 233 ms of a step of RoBERTa-base on an H200.
Everything between load and store is fp32; what is stored has the dtype of the product.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS = 4  # of a program at a time: one a warp
PROGRAMS = 528  # of kernels that sum over rows: two rounds of the 2 that fit on each of 132 multiprocessors
GELU_ROWS, GELU_WIDTH = 8, 512
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
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the product ``hidden @ weight.T + bias``, and `hidden` again for whatever else reads it.

    In the backward pass the gradient of the second is where the product's adds up (`addmm`): no gradient of
    `hidden` is written alone and added later.

    Args:
        hidden: [T, D].
        weight: [L, D], of the same dtype.
        bias: [L], or None.
    """
    product, again = _Branch.apply(hidden, weight, bias)
    return product, again


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(hidden, weight)
        return functional.linear(hidden, weight, bias), hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        d_product, d_again = grads
        d_bias = d_product.sum(0) if ctx.needs_input_grad[2] else None
        d_hidden = torch.addmm(d_again, d_product, weight) if ctx.needs_input_grad[0] else None
        return d_hidden, d_product.t() @ hidden if ctx.needs_input_grad[1] else None, d_bias


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
            "ROWS": ROWS,
            "DROPOUT": rate > 0,
        }
        noise = (round(rate * 2**31), 1 / (1 - rate))
        with torch.cuda.device_of(hidden):
            kernels.norm_forward[(-(-rows // ROWS),)](
                hidden, bias, residual, weight, norm_bias, out, kept, mean, inverse, rows, seed, eps, *noise,
                **facts, KEEP=keeps, num_warps=ROWS,
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
        programs = min(PROGRAMS, -(-len(mean) // ROWS))
        d_hidden, d_residual = torch.empty_like(kept), torch.empty_like(kept)
        sums = torch.empty(programs, 3, width, device=kept.device)
        with torch.cuda.device_of(kept):
            kernels.norm_backward[(programs,)](
                grads[0].contiguous(), kept, weight, mean, inverse, d_hidden, d_residual, sums, len(mean), ctx.seed,
                *ctx.noise, **ctx.facts, num_warps=ROWS,
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
        grid = (-(-rows // GELU_ROWS), -(-width // GELU_WIDTH))
        with torch.cuda.device_of(hidden):
            kernels.gelu_forward[grid](hidden, bias, out, rows, D=width, ROWS=GELU_ROWS, WIDTH=GELU_WIDTH)
        ctx.save_for_backward(hidden, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from tinyhat.encoder.fused import kernels

        hidden, bias = ctx.saved_tensors
        width = hidden.shape[-1]
        rows = hidden.numel() // width
        blocks = -(-width // GELU_WIDTH)
        programs = min(-(-PROGRAMS // blocks), -(-rows // GELU_ROWS))
        d_hidden = torch.empty_like(hidden)
        sums = torch.empty(programs, width, device=hidden.device)
        with torch.cuda.device_of(hidden):
            kernels.gelu_backward[(programs, blocks)](
                grads[0].contiguous(), hidden, bias, d_hidden, sums, rows, D=width, ROWS=GELU_ROWS, WIDTH=GELU_WIDTH
            )
        return d_hidden, sums.sum(0).to(bias.dtype)
