"""What the head reads of a pack: first-token rows or sequence means, taken where the layers end.

Stock heads pool ``hidden[:, 0]`` of a [B, n, D] tensor. A forward hook hands them [S, 1, D] instead of [1, T, D], so
they, and a pooler before them, stay as they are and give one row per sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


def install_gather(model: PreTrainedModel, first_rows_only: bool) -> torch.utils.hooks.RemovableHandle:
    """Hook the module that hands its states to the pooler or head; active where the keyword `gather` is true.

    Args:
        model: a stock ``*ForSequenceClassification``.
        first_rows_only: the last layer already returns first rows alone, [1, S, D].

    Returns:
        The handle that removes the hook.
    """
    body = model.base_model
    pools_itself = getattr(body, "pooler", None) is not None
    module = body.encoder if pools_itself else body  # never a layer: ALBERT shares them
    mean = getattr(model.config, "classifier_pooling", None) == "mean"

    def hook(_module: nn.Module, _args: tuple, kwargs: dict[str, Any], output: ModelOutput) -> ModelOutput | None:
        if not kwargs.get("gather"):
            return None
        hidden_TD, cu_seqlens = output["last_hidden_state"][0], kwargs["cu_seqlens"]
        if mean:
            rows_SD = segment_means(hidden_TD, cu_seqlens)
        else:
            rows_SD = hidden_TD if first_rows_only else hidden_TD[cu_seqlens[:-1]]
        output["last_hidden_state"] = rows_SD[:, None]
        return output

    return module.register_forward_hook(hook, with_kwargs=True)


def segment_means(hidden_TD: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Return the mean of every sequence's rows, [S, D], summed in fp32.

    Args:
        hidden_TD: [T, D].
        cu_seqlens: int32 [S + 1].
    """
    lengths = cu_seqlens.diff()
    sequence = torch.repeat_interleave(lengths, output_size=hidden_TD.shape[0])
    total = hidden_TD.new_zeros(len(lengths), hidden_TD.shape[1], dtype=torch.float32)
    total = total.index_add(0, sequence, hidden_TD.float())
    return (total / lengths[:, None]).to(hidden_TD.dtype)
