"""The parts of a post-norm layer between two products, with their gradients. T rows, D columns."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tinyhat.encoder.fused.launch import Dropout, gelu_backward, gelu_forward, norm_backward, norm_forward


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

    Args:
        hidden: [..., D], as for `norm_forward`; so are the next four.
        bias: see there.
        residual: see there.
        weight: see there.
        norm_bias: see there.
        rate: of dropout, below 1; 0 in evaluation.
        eps: added to the variance.
    """
    tensors = (hidden, bias, residual, weight, norm_bias)
    out = _DropoutAddNorm.apply(*tensors, eps, *Dropout.draw(rate), requires_gradient(*tensors))
    assert isinstance(out, torch.Tensor)
    return out


def bias_gelu(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return gelu(hidden + bias), the exact one, of the shape and dtype of `hidden`.

    Args:
        hidden: [..., D].
        bias: [D].
    """
    out = _BiasGelu.apply(hidden, bias)
    assert isinstance(out, torch.Tensor)
    return out


def branch(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``hidden @ weight.T``, and `hidden` again for whatever else reads it.

    In the backward pass the gradient of the second is where the product's adds up (`addmm`): no gradient of
    `hidden` is written alone and added later.

    Args:
        hidden: [T, D].
        weight: [L, D], of the same dtype.
    """
    product, again = _Branch.apply(hidden, weight)
    return product, again


def requires_gradient(*tensors: torch.Tensor) -> bool:
    """Return whether there will be a backward pass."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(hidden, weight)
        return functional.linear(hidden, weight), hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        d_product, d_again = grads
        d_hidden = torch.addmm(d_again, d_product, weight) if ctx.needs_input_grad[0] else None
        return d_hidden, d_product.t() @ hidden if ctx.needs_input_grad[1] else None


class _DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Compute `norm_forward` of its arguments."""
        hidden, bias, residual, weight, norm_bias, eps, dropout, keeps = inputs
        hidden, residual = hidden.contiguous(), residual.contiguous()
        normed = norm_forward(hidden, bias, residual, weight, norm_bias, eps, dropout, keeps)
        ctx.save_for_backward(normed.kept, normed.stats, weight)
        ctx.dropout, ctx.dtypes = dropout, (bias.dtype, weight.dtype, norm_bias.dtype)
        return normed.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, stats, weight = ctx.saved_tensors
        d_hidden, d_residual, sums = norm_backward(grads[0].contiguous(), kept, stats, weight, ctx.dropout)
        d_bias, d_weight, d_norm = (x.to(dtype) for x, dtype in zip(sums, ctx.dtypes, strict=True))
        return d_hidden, d_bias, d_residual, d_weight, d_norm, None, None, None


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        hidden = hidden.contiguous()
        ctx.save_for_backward(hidden, bias)
        return gelu_forward(hidden, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, bias = ctx.saved_tensors
        d_hidden, d_bias = gelu_backward(grads[0].contiguous(), hidden, bias)
        return d_hidden, d_bias.to(bias.dtype)
