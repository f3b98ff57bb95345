"""The last linear layer of a classifier: where it is, where it starts, and what is folded into it at the end."""

from __future__ import annotations

from types import MethodType

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tinyhat.encoder.precision import body_parameters
from tinyhat.types import FloatArray, IntArray

VOTE = "tinyhat_vote"  # the name of a learned vote (head/learned_vote.py) within the model


def output_layer(model: nn.Module, labels: int) -> nn.Linear:
    """Return the linear layer that makes the logits: the last one with `labels` outputs outside the encoder.

    Raises:
        ValueError: the model has no such layer.
    """
    outside = {name for name in head_names(model) if VOTE not in name}
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == labels and f"{name}.weight" in outside:
            return module
    raise ValueError(f"{type(model).__name__} has no linear layer with {labels} outputs after its encoder")


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters outside the encoder (``base_model_prefix``): the head's."""
    body = body_parameters(model)
    return [name for name, p in model.named_parameters() if id(p) not in body]


def compute_in_fp32(layer: nn.Linear) -> None:
    """Let the output layer compute in fp32 under every plan (once is enough; calling again changes nothing).

    bf16 has 8 bits: logits near -7 would come in steps of 1/32, thousands of labels would tie, and a regression around
    2,000 would know only every eighth value (R² 0.81 instead of 0.92 in a measurement). The layer is one row a
    document, so this costs nothing. Training under a plan whose head is low says so by `low_while_training`.
    """
    layer.forward = MethodType(_fp32_forward, layer)  # type: ignore[method-assign]


def head_modules(model: nn.Module) -> list[nn.Module]:
    """Return the linear layers and norms outside the encoder, in the model's order (a tied output layer included)."""
    unwrap = getattr(model, "get_base_model", None)
    base = getattr(unwrap() if callable(unwrap) else model, "base_model", None)
    body = {id(m) for m in base.modules()} if isinstance(base, nn.Module) else set()
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.LayerNorm) and id(m) not in body]


def last_linear(model: nn.Module) -> nn.Linear | None:
    """Return the linear layer that makes the logits, whatever its width; None where the head does not end in one.

    The layers of a learned vote, which are attached behind it, are left out.
    """
    votes = {id(m) for name, m in model.named_modules() if VOTE in name}
    found = [m for m in head_modules(model) if isinstance(m, nn.Linear) and id(m) not in votes]
    return found[-1] if found else None


def low_while_training(model: nn.Module, low: bool) -> None:
    """Let the head compute in training mode as the plan around it says (`low`), or in fp32.

    In fp32 autocast is off in all of the head and inputs are cast: an fp32 layer under autocast would compute in bf16.
    In evaluation mode the output layer computes in fp32 anyway (`compute_in_fp32`).
    """
    for module in head_modules(model):
        module.low_while_training = low  # type: ignore[assignment,unused-ignore]
        if not low:
            module.forward = MethodType(_fp32_forward, module)


def _fp32_forward(layer: nn.Linear | nn.LayerNorm, hidden_BD: torch.Tensor) -> torch.Tensor:
    if layer.training and getattr(layer, "low_while_training", False):
        return type(layer).forward(layer, hidden_BD)  # type: ignore[arg-type]
    # a norm may have no weights of its own
    weight, bias = (None if x is None else x.float() for x in (layer.weight, layer.bias))
    with torch.autocast(hidden_BD.device.type, enabled=False):
        if isinstance(layer, nn.LayerNorm):
            return functional.layer_norm(hidden_BD.float(), layer.normalized_shape, weight, bias, layer.eps)
        assert weight is not None
        return functional.linear(hidden_BD.float(), weight, bias)


def start_at_prior(layer: nn.Linear, train_counts: IntArray, documents: int) -> None:
    """Set the bias to the log prior odds of each label, so that the first steps need not learn that labels are rare.

    log((c + 1/2) / (N - c + 1/2)) for a label with c of N training documents (Haldane's correction; Lin et al. 2017,
    "Focal Loss", section 4.1, starts from a prior for the same reason). Without it the first summed BCE over 4,271
    labels is 2,960 nats a document, with it a few dozen.

    Args:
        layer: the output layer, L outputs.
        train_counts: int64 [L].
        documents: N, the number of training documents.
    """
    if layer.bias is None:
        return
    odds = np.log((train_counts + 0.5) / (documents - train_counts + 0.5))
    with torch.no_grad():
        layer.bias.copy_(torch.from_numpy(odds.astype(np.float32)))


def fold_scale(layer: nn.Linear, mean: FloatArray, std: FloatArray) -> None:
    """Make the layer speak in the targets' own units: x -> x * std + mean, per output (float32 [K])."""
    with torch.no_grad():
        scale = torch.from_numpy(std).to(layer.weight)
        layer.weight.mul_(scale[:, None])
        layer.bias.mul_(scale).add_(torch.from_numpy(mean).to(layer.bias))
