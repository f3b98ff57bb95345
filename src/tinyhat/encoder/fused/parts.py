"""Parts of a post-norm layer that run `ops` on a GPU, and when they may: BertSelfOutput, BertOutput, feed-forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tinyhat.encoder.fused.launch import LARGEST
from tinyhat.encoder.fused.ops import bias_gelu, branch, dropout_add_norm
from tinyhat.encoder.fused.proof import Kernel, proven


def has(module: Any, name: str, kind: type[nn.Module]) -> bool:
    """Return whether `module` has a module of that name and kind."""
    return isinstance(getattr(module, name, None), kind)


def is_output(module: nn.Module | None) -> bool:
    """Return whether `module` has what BertSelfOutput and BertOutput have: dense, dropout, norm."""
    norm = getattr(module, "LayerNorm", None)
    affine = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    dropout = getattr(module, "dropout", None)
    drops = isinstance(dropout, nn.Dropout) and dropout.p < 1
    return affine and drops and has(module, "dense", nn.Linear)


def output(part: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
    """Their forward: fused where it may be, else stock."""
    stock = not _fuses(hidden_states, "norm", part.dense)
    return (type(part).forward if stock else fused_output)(part, hidden_states, input_tensor)


def fused_output(part: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
    """Return what they return: dense, dropout, sum, norm."""
    dense, norm = part.dense, part.LayerNorm
    product = functional.linear(hidden_states, dense.weight)
    residual = input_tensor.to(product.dtype)
    return dropout_add_norm(product, dense.bias, residual, norm.weight, norm.bias, dropout_rate(part.dropout), norm.eps)


def output_example(part: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Return something for `part`, positional and by keyword."""
    return (torch.randn(1, 3, part.dense.in_features), torch.randn(1, 3, part.dense.out_features)), {}


def is_layer(module: nn.Module) -> bool:
    """Return whether `module` has BertLayer's two products behind its attention, with GELU between them."""
    inner = getattr(module, "intermediate", None)
    function = getattr(inner, "intermediate_act_fn", None)
    gelu = function is functional.gelu or getattr(function, "act", None) is functional.gelu
    return gelu and hasattr(module, "feed_forward_chunk") and has(inner, "dense", nn.Linear)


def feed_forward(layer: Any, attention_output: torch.Tensor) -> torch.Tensor:
    """Their method of BertLayer: fused where it may be, else stock."""
    stock = not _fuses(attention_output, "gelu", layer.intermediate.dense)
    return (type(layer).feed_forward_chunk if stock else fused_feed_forward)(layer, attention_output)


def fused_feed_forward(layer: Any, attention_output: torch.Tensor) -> torch.Tensor:
    """Return what it returns, for states of any shape."""
    up = layer.intermediate.dense
    low = products_in(attention_output, up)
    product, residual = branch(attention_output.flatten(0, -2).to(low), up.weight.to(low))
    shape = attention_output.shape[:-1]
    return layer.output(bias_gelu(product, up.bias).unflatten(0, shape), residual.unflatten(0, shape))


def layer_example(layer: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Return states for `layer`."""
    return (torch.randn(1, 3, layer.intermediate.dense.in_features),), {}


def products_in(hidden: torch.Tensor, layer: nn.Linear) -> torch.dtype:
    """Return the dtype that autocast would take for a product of `layer`."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.weight.dtype


def on_a_gpu(hidden: torch.Tensor) -> bool:
    """Return whether `hidden` is something on a GPU, and nothing is compiled."""
    return hidden.is_cuda and hidden.numel() > 0 and not torch.compiler.is_compiling()


def is_plain(layer: nn.Module) -> bool:
    """Return whether `layer` is a stock linear module with a bias: no adapter, no fp8 products."""
    return type(layer) is nn.Linear and layer._parameters.get("bias") is not None


def dropout_rate(dropout: Any) -> float:
    """Return the rate at which `dropout` drops now; its own flag counts, not that of the module around it."""
    return float(dropout.p) if dropout.training else 0.0


def is_hooked(module: nn.Module) -> bool:
    """Return whether somebody looks at what `module` reads or writes, other than transformers: weights of attention."""
    own = all(hook.__module__.startswith("transformers.") for hook in module._forward_hooks.values())
    return not own or bool(module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def is_proven(kernel: Kernel, device: torch.device, width: int, dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Return whether `kernel` takes rows of such a width, and is proven right there (see `proven`)."""
    return (kernel != "norm" or (width % 4 == 0 and width <= LARGEST)) and proven(kernel, device, width, dtype, stored)


def _fuses(hidden: torch.Tensor, kernel: Kernel, layer: Any) -> bool:
    """Return whether `layer` of `hidden` may run fused: a stock one on a GPU, and `kernel` proven right there."""
    if not on_a_gpu(hidden) or not is_plain(layer) or is_hooked(layer):
        return False
    return is_proven(kernel, hidden.device, layer.out_features, products_in(hidden, layer), layer.bias.dtype)
