"""Post-norm layers that run `ops` on a GPU: BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, ERNIE, MiniLM and their like."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from tinyhat.encoder.fused.ops import LARGEST, available, bias_gelu, branch, dropout_add_norm
from tinyhat.encoder.fused.proof import Kernel, proven
from tinyhat.encoder.interface import NAME, attention_forward

CLOSE = 1e-5  # of the largest value, fp32: a part that computes something else is far above


def install_fused(model: PreTrainedModel) -> int:
    """Let the parts of post-norm layers run fused on a GPU; return how many parts there are. Without a GPU: 0.

    Parameters and names stay. A part is known by its modules' names and types, and by proof: its stock forward is
    compared with what would replace it, once for each class. On a processor, compiled, or where a part's modules were
    replaced since (adapters, fp8 products), the stock forward answers.

    Args:
        model: a stock model in fp32 on the processor, packed attention installed or not.
    """
    if not available():
        return 0
    found = 0
    same: dict[tuple[type, str], bool] = {}
    for module in model.base_model.modules():
        for part in _PARTS:
            if part.fits(module):
                key = type(module), part.method
                if key not in same:
                    same[key] = _computes_the_same(part, module)
                if same[key]:
                    setattr(module, part.method, MethodType(part.dispatch, module))
                    found += 1
    return found


class _Part(NamedTuple):
    """A method of a stock module, and what replaces it."""

    fits: Callable[[nn.Module], bool]
    method: str
    dispatch: Callable[..., Any]
    fused: Callable[..., Any]
    example: Callable[[Any], tuple[tuple[torch.Tensor, ...], dict[str, Any]]]


@torch.no_grad()
def _computes_the_same(part: _Part, module: nn.Module) -> bool:
    training = module.training
    module.eval()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of the processor alone
        args, kwargs = part.example(module)
        try:
            stock, fused = (f(module, *args, **kwargs) for f in (getattr(type(module), part.method), part.fused))
        except (TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError):
            return False
        finally:
            module.train(training)
    if type(stock) is not type(fused) or (isinstance(stock, tuple) and len(stock) != len(fused)):
        return False
    stock, fused = (x[0] if isinstance(x, tuple) else x for x in (stock, fused))
    return stock.shape == fused.shape and float((stock - fused).abs().max()) <= CLOSE * float(stock.abs().max())


def _has(module: Any, name: str, kind: type[nn.Module]) -> bool:
    return isinstance(getattr(module, name, None), kind)


def _is_output(module: nn.Module) -> bool:
    norm = getattr(module, "LayerNorm", None)
    affine = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    dropout = getattr(module, "dropout", None)
    drops = isinstance(dropout, nn.Dropout) and dropout.p < 1
    return affine and drops and _has(module, "dense", nn.Linear)


def _output(part: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
    """BertSelfOutput and BertOutput: dense, dropout, sum, norm."""
    stock = not _fuses(hidden_states, "norm", part.dense)
    return (type(part).forward if stock else _fused_output)(part, hidden_states, input_tensor)


def _fused_output(part: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
    dense, norm = part.dense, part.LayerNorm
    product = functional.linear(hidden_states, dense.weight)
    rate = part.dropout.p if part.training else 0.0
    residual = input_tensor.to(product.dtype)
    return dropout_add_norm(product, dense.bias, residual, norm.weight, norm.bias, rate, norm.eps)


def _output_example(part: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    return (torch.randn(1, 3, part.dense.in_features), torch.randn(1, 3, part.dense.out_features)), {}


def _is_layer(module: nn.Module) -> bool:
    inner = getattr(module, "intermediate", None)
    function = getattr(inner, "intermediate_act_fn", None)
    gelu = function is functional.gelu or getattr(function, "act", None) is functional.gelu
    return gelu and hasattr(module, "feed_forward_chunk") and _has(inner, "dense", nn.Linear)


def _feed_forward(layer: Any, attention_output: torch.Tensor) -> torch.Tensor:
    """The two products of BertLayer behind its attention."""
    stock = not _fuses(attention_output, "gelu", layer.intermediate.dense)
    return (type(layer).feed_forward_chunk if stock else _fused_feed_forward)(layer, attention_output)


def _fused_feed_forward(layer: Any, attention_output: torch.Tensor) -> torch.Tensor:
    up = layer.intermediate.dense
    low = _products_in(attention_output, up)
    product, residual = branch(attention_output.flatten(0, -2).to(low), [up.weight])
    shape = attention_output.shape[:-1]
    return layer.output(bias_gelu(product, up.bias).unflatten(0, shape), residual.unflatten(0, shape))


def _layer_example(layer: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    return (torch.randn(1, 3, layer.intermediate.dense.in_features),), {}


def _is_attention(module: nn.Module) -> bool:
    own = getattr(module, "self", None)
    packed = getattr(getattr(own, "config", None), "_attn_implementation", None) == NAME
    linear = all(_has(own, name, nn.Linear) for name in ("query", "key", "value"))
    return packed and linear and hasattr(own, "attention_head_size") and _has(module, "output", nn.Module)


def _attention(part: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """BertAttention of a pack: queries, keys, values, attention, and the output part."""
    own = part.self
    fuses = kwargs.get("cu_seqlens") is not None and _fuses(hidden_states, "sums", own.query, own.key, own.value)
    return (_fused_attention if fuses else type(part).forward)(part, hidden_states, *args, **kwargs)


def _fused_attention(
    part: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    own = part.self
    layers = own.query, own.key, own.value
    low = _products_in(hidden_states, own.query)
    *products, residual = branch(hidden_states[0].to(low), [x.weight for x in layers], [x.bias for x in layers])
    query, key, value = (x.unflatten(-1, (-1, own.attention_head_size)).transpose(0, 1)[None] for x in products)
    context = attention_forward(own, query, key, value, None, scaling=own.scaling, **kwargs)[0]
    return part.output(context.flatten(2), residual[None]), None


def _attention_example(part: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    boundaries = torch.tensor([0, 5, 7], dtype=torch.int32)
    return (torch.randn(1, 7, part.self.query.in_features),), {"cu_seqlens": boundaries, "max_seqlen": 5}


def _products_in(hidden: torch.Tensor, layer: nn.Linear) -> torch.dtype:
    """Return the dtype that autocast would take for a product of `layer`."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.weight.dtype


def _fuses(hidden: torch.Tensor, kernel: Kernel, *layers: nn.Module) -> bool:
    """Return whether `layers` of `hidden` may run fused: stock ones on a GPU, and `kernel` proven right there."""
    if not hidden.is_cuda or hidden.numel() == 0 or torch.compiler.is_compiling():
        return False
    return all(_is_plain(layer) and _is_proven(kernel, hidden, layer) for layer in layers)


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.bias is not None and not layer._forward_hooks


def _is_proven(kernel: Kernel, hidden: torch.Tensor, layer: Any) -> bool:
    width = layer.out_features
    if kernel == "norm" and (width % 4 or width > LARGEST):
        return False
    return proven(kernel, hidden.device, width, _products_in(hidden, layer), layer.bias.dtype)


_PARTS = (
    _Part(_is_output, "forward", _output, _fused_output, _output_example),
    _Part(_is_layer, "feed_forward_chunk", _feed_forward, _fused_feed_forward, _layer_example),
    _Part(_is_attention, "forward", _attention, _fused_attention, _attention_example),
)
for _part in _PARTS:
    _part.dispatch.__name__ = _part.method  # a pickled method is looked up by its name: there it is the stock one
