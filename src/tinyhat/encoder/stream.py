"""Under CPU autocast the residual stream of a post-norm encoder runs in the compute dtype, not in fp32 by accident."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def install_low_stream(model: PreTrainedModel) -> None:
    """Cast what the embeddings return to autocast's dtype, on CPU and under autocast only.

    Embedding and LayerNorm give fp32, and ``hidden + residual`` keeps it so to the last layer: each projection then
    casts the same input once more, and additions, norms and dropout move twice the bytes. (ELECTRA with a narrow
    embedding and ALBERT have a linear layer there, so stock autocast already runs them this way.) MiniLM, EURLEX57K, 2
    cores: 9.5 documents/s against 8.8; the gradient's relative error to fp32 is 0.010 against 0.006.
    """

    def cast(_module: nn.Module, _args: tuple, output: torch.Tensor) -> torch.Tensor:
        if output.is_cpu and torch.is_autocast_enabled("cpu"):
            return output.to(torch.get_autocast_dtype("cpu"))
        return output

    model.base_model.embeddings.register_forward_hook(cast)
