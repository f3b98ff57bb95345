"""Post-norm layers that run `ops` on a GPU: BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, ERNIE, MiniLM and their like."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from tinyhat.encoder.fused.launch import LARGEST, available
from tinyhat.encoder.fused.layer import Facts, Pack, Weights, post_norm_layer
from tinyhat.encoder.fused.ops import bias_gelu, branch, dropout_add_norm
from tinyhat.encoder.fused.proof import Kernel, proven
from tinyhat.encoder.interface import NAME

CLOSE = 1e-5  # of the largest value, fp32: a part that computes something else is far above


def install_fused(model: PreTrainedModel) -> int:
    """Let post-norm layers and their parts run fused on a GPU; return how many there are. Without a GPU: 0.

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
            if part.method not in vars(module) and part.fits(module):  # what somebody replaced stays
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


def _is_output(module: nn.Module | None) -> bool:
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
    product, residual = branch(attention_output.flatten(0, -2).to(low), up.weight.to(low))
    shape = attention_output.shape[:-1]
    return layer.output(bias_gelu(product, up.bias).unflatten(0, shape), residual.unflatten(0, shape))


def _layer_example(layer: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    return (torch.randn(1, 3, layer.intermediate.dense.in_features),), {}


def _is_whole(layer: nn.Module) -> bool:
    """BertLayer of a bidirectional encoder: attention with its output part, and the two products behind it."""
    attention = getattr(layer, "attention", None)
    own = getattr(attention, "self", None)
    if not (_is_layer(layer) and hasattr(own, "attention_head_size") and hasattr(own, "scaling")):
        return False
    packed = getattr(getattr(own, "config", None), "_attn_implementation", None) == NAME
    linear = all(_has(own, name, nn.Linear) for name in ("query", "key", "value"))
    outputs = _is_output(getattr(attention, "output", None)) and _is_output(getattr(layer, "output", None))
    alone = not getattr(layer, "chunk_size_feed_forward", 0) and not getattr(layer, "add_cross_attention", False)
    return packed and linear and outputs and alone


def _whole(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """BertLayer of a pack."""
    stock = kwargs.get("cu_seqlens") is None or not _fuses_whole(layer, hidden_states)
    return (type(layer).forward if stock else _fused_whole)(layer, hidden_states, *args, **kwargs)


def _fuses_whole(layer: Any, hidden: torch.Tensor) -> bool:
    own, first, up, second = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return False  # its node would keep queries, keys and values
    inner = (layer.attention, own, up, *(m for x in (first, second) for m in (x, x.dropout, x.LayerNorm)))
    return (
        not any(map(_is_hooked, inner))
        and _fuses(hidden, "sums", own.query, own.key, own.value)
        and _fuses(hidden, "norm", first.dense, second.dense)
        and _fuses(hidden, "gelu", up.dense)
    )


def _fused_whole(layer: Any, hidden_states: torch.Tensor, *_: Any, **kwargs: Any) -> torch.Tensor:
    own, first, up, second = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    rates = (first.dropout.p, second.dropout.p) if layer.training else (0.0, 0.0)
    facts = Facts(own.attention_head_size, own.scaling, (first.LayerNorm.eps, second.LayerNorm.eps), rates)
    weights = Weights(
        own.query.weight, own.key.weight, own.value.weight, first.dense.weight, up.dense.weight, second.dense.weight,
        own.query.bias, own.key.bias, own.value.bias,
        first.dense.bias, first.LayerNorm.weight, first.LayerNorm.bias,
        up.dense.bias, second.dense.bias, second.LayerNorm.weight, second.LayerNorm.bias,
    )  # fmt: skip
    hidden = hidden_states[0].to(_products_in(hidden_states, own.query))
    return post_norm_layer(hidden, Pack(kwargs["cu_seqlens"], kwargs["max_seqlen"]), facts, weights)[None]


def _whole_example(layer: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    boundaries = torch.tensor([0, 5, 7], dtype=torch.int32)
    width = layer.attention.self.query.in_features
    return (torch.randn(1, 7, width),), {"cu_seqlens": boundaries, "max_seqlen": 5}


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
    return type(layer) is nn.Linear and layer.bias is not None and not _is_hooked(layer)


def _is_hooked(module: nn.Module) -> bool:
    """Return whether somebody looks at what `module` reads or writes, other than transformers: weights of attention."""
    own = all(hook.__module__.startswith("transformers.") for hook in module._forward_hooks.values())
    return not own or bool(module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _is_proven(kernel: Kernel, hidden: torch.Tensor, layer: Any) -> bool:
    width = layer.out_features
    if kernel == "norm" and (width % 4 or width > LARGEST):
        return False
    return proven(kernel, hidden.device, width, _products_in(hidden, layer), layer.bias.dtype)


_PARTS = (
    _Part(_is_output, "forward", _output, _fused_output, _output_example),
    _Part(_is_layer, "feed_forward_chunk", _feed_forward, _fused_feed_forward, _layer_example),
    _Part(_is_whole, "forward", _whole, _fused_whole, _whole_example),
)
for _part in _PARTS:
    _part.dispatch.__name__ = _part.method  # a pickled method is looked up by its name: there it is the stock one
