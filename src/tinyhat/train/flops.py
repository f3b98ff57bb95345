"""How much arithmetic a step asks for, and how much the device could do: model FLOP utilisation."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from tinyhat.encoder.precision import Plan, body_parameters
from tinyhat.types import IntArray

# dense products per second, vendor's data sheets, SXM parts: fp32 without tensor cores, TF32, 16 bits, fp8
_PEAKS = {
    "H200": (67e12, 494.7e12, 989.4e12, 1978.9e12),
    "H100": (67e12, 494.7e12, 989.4e12, 1978.9e12),
    "A100": (19.5e12, 156e12, 312e12, 312e12),
    "L40S": (91.6e12, 183e12, 362e12, 733e12),
}


def step_flops(model: nn.Module, lengths: IntArray, every_token_out: bool = False) -> float:
    """Return the FLOPs of the products of one step, forward and backward: 6 x weights x tokens, and attention.

    (Kaplan et al. 2020, table 1; Chowdhery et al. 2022, appendix B: 12 x layers x width x length per token, half of it
    where attention is causal.) Only real tokens count, of the plain model: what packing or first-row layers leave out
    counts as done, what padding adds does not. Embeddings are look-ups and count nothing.

    Args:
        model: a classifier or a language model of transformers.
        lengths: int64 [B], tokens of each document of the step.
        every_token_out: the output layer works on every token (language models) and attention is causal.
    """
    config: Any = model.config
    body = body_parameters(model)
    inside = outside = 0
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        if parameter.ndim == 2 and id(parameter) not in embeddings:
            if id(parameter) in body:
                inside += parameter.numel()
            else:
                outside += parameter.numel()
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if every_token_out and output is not None and id(output.weight) in embeddings:
        inside += output.weight.numel()  # a tied output layer is a product all the same
    tokens, squares = float(lengths.sum()), float(np.square(lengths.astype(np.float64)).sum())
    attention: float = (
        12.0 * config.num_hidden_layers * config.hidden_size * squares * (0.5 if every_token_out else 1.0)
    )
    return 6.0 * inside * tokens + 6.0 * outside * (tokens if every_token_out else len(lengths)) + attention


def peak_flops(plan: Plan, device: torch.device) -> tuple[float, str]:
    """Return the FLOP/s the device can do in the plan's products, and where the number is from.

    A GPU's is its data sheet's (by name); a processor's, or an unknown GPU's, is measured once per process.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (fp32, tf32, half, fp8) in _PEAKS.items():
            if part in name:
                half = fp8 if getattr(plan, "products_recipe", None) else half
                peak = half if plan.compute != torch.float32 else (fp32 if plan.matmul == "highest" else tf32)
                return peak, f"{name}, data sheet"
    dtype = torch.float32 if plan.compute == torch.float16 and device.type == "cpu" else plan.compute
    return _measured(dtype, plan.matmul, device.type), "measured, the best of 12 products of 1,536 x 1,536"


@lru_cache
def _measured(dtype: torch.dtype, matmul: str, device: str) -> float:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul)
    a = torch.randn(1536, 1536, device=device).to(dtype)
    best = 0.0
    for _ in range(12):
        begin = time.perf_counter()
        torch.mm(a, a)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * 1536**3 / (time.perf_counter() - begin))
    torch.set_float32_matmul_precision(before)
    return best
