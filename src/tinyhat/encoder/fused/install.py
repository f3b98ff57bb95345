"""Post-norm layers made to run fused on a GPU: BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, ERNIE, MiniLM and more."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from tinyhat.encoder.fused.launch import available
from tinyhat.encoder.fused.parts import (
    feed_forward,
    fused_feed_forward,
    fused_output,
    is_layer,
    is_output,
    layer_example,
    output,
    output_example,
)
from tinyhat.encoder.fused.whole import fused_whole, is_whole, whole, whole_example

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


_PARTS = (
    _Part(is_output, "forward", output, fused_output, output_example),
    _Part(is_layer, "feed_forward_chunk", feed_forward, fused_feed_forward, layer_example),
    _Part(is_whole, "forward", whole, fused_whole, whole_example),
)
for _part in _PARTS:
    _part.dispatch.__name__ = _part.method  # a pickled method is looked up by its name: there it is the stock one
