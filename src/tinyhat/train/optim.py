"""The optimiser's parameter groups and the learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from tinyhat.config import LoopConfig, PretrainConfig, TrainConfig
from tinyhat.encoder.layers import stack_of
from tinyhat.errors import UserError
from tinyhat.head.output import head_names
from tinyhat.train.adamw import LowAdamW
from tinyhat.train.lamb import build_lamb
from tinyhat.train.precision import FP32, STATE_DTYPES, TrainPlan
from tinyhat.train.schedule import shape


def base_rate(config: LoopConfig, width: int) -> float:
    """Return the body's learning rate: as configured, or 5e-5 x (768 / width)^2, at most 3e-4.

    5e-5 is the usual rate of 768-wide encoders (Devlin et al. 2019, appendix A.3). Narrower ones take more: the
    384-wide MiniLM trained well at 3e-4 (the founding prototype on EURLEX57K), and nothing above was tried.
    """
    return config.learning_rate or min(3e-4, 5e-5 * (768 / width) ** 2)


def parameter_groups(model: nn.Module, config: LoopConfig, rate: float) -> list[dict[str, object]]:
    """Return AdamW groups of what is not frozen: parameters that share rate and decay, the body's own rate first.

    Biases, norms and other vectors are not decayed (Loshchilov & Hutter 2019 decay weights; everyone since leaves
    one-dimensional parameters out), nor is a body that L2-SP pulls elsewhere than to 0, nor, in pretraining, an
    embedding, as under LAMB.
    """
    factors = rate_factors(model, config)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    head = set(head_names(model))
    pulled = isinstance(config, TrainConfig) and config.l2_sp > 0
    pretrains = isinstance(config, PretrainConfig)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = (pulled and name not in head) or (pretrains and "embedding" in name)
            decays = parameter.ndim >= 2 and not spared
            groups.setdefault((factors[name], decays), []).append(parameter)
    return [
        {"params": parameters, "lr": rate * factor, "weight_decay": config.weight_decay if decays else 0.0}
        for (factor, decays), parameters in sorted(groups.items(), key=lambda item: abs(item[0][0] - 1.0))
    ]


def rate_factors(model: nn.Module, config: LoopConfig) -> dict[str, float]:
    """Return by name what a parameter's rate is as a multiple of the body's.

    The head has ``head_rate``. A layer has ``layer_decay`` times the rate of the one above it, the top layer 1, the
    embeddings as one layer more (Howard & Ruder 2018, section 3.2, there 1/2.6; Clark et al. 2020, ELECTRA, appendix
    B, 0.8 or 0.9). What LoRA adds, and all that learns under ``update=bias`` in the body, have ``adapter_rate``.
    """
    head = set(head_names(model))
    factors = {name: config.head_rate if name in head else 1.0 for name, _ in model.named_parameters()}
    if not isinstance(config, TrainConfig) or not isinstance(model, PreTrainedModel):
        return factors
    depth = stack_of(model).depth() if config.layer_decay < 1 else {}
    for name in set(factors) - head:
        adapter = config.update == "bias" or "lora_" in name
        factors[name] = (config.adapter_rate if adapter else 1.0) * config.layer_decay ** depth.get(name, 0)
    return factors


def build_optimizer(
    model: nn.Module,
    config: LoopConfig,
    width: int,
    plan: TrainPlan = FP32,
    originals: dict[torch.Tensor, torch.Tensor] | None = None,
) -> torch.optim.Optimizer:
    """Return the AdamW of `plan` over `parameter_groups`, fused where torch's own will do; or LAMB.

    Args:
        model: stored as the plan says.
        config: rates, decay, seed.
        width: of the encoder.
        plan: states, master and rounding.
        originals: fp32 weights that were rounded already, where masters begin.
    """
    if isinstance(config, PretrainConfig) and config.optimizer == "lamb":
        if plan.body != torch.float32 or plan.states != "fp32":
            raise UserError(
                f"pretrain.plan = {plan.name}: LAMB keeps weights and states in fp32; use --optimizer adamw"
            )
        return build_lamb(model, config)
    groups = parameter_groups(model, config, base_rate(config, width))
    optimizer: torch.optim.Optimizer
    if plan.states == "int8":
        optimizer = _adam_8bit(groups)
    elif plan.states == "fp8":
        from torchao.optim import AdamWFp8  # type: ignore[import-not-found,unused-ignore]

        optimizer = AdamWFp8(groups)
    elif plan.body == torch.float32:
        optimizer = torch.optim.AdamW(groups, fused=True)
    elif plan.rounding == "each operation":
        optimizer = torch.optim.AdamW(groups, foreach=True)
    elif plan.master == "none" and plan.rounding == "once" and plan.states != "fp32":
        optimizer = torch.optim.AdamW(groups, fused=True)  # states take the parameters' dtype, registers are fp32
    else:
        states = STATE_DTYPES[plan.states]
        optimizer = LowAdamW(groups, states, plan.master, plan.rounding, originals, config.seed)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def _adam_8bit(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """8-bit block-wise AdamW (Dettmers et al. 2022); tensors below 4,096 values keep fp32 states."""
    import logging

    quiet = logging.getLogger("bitsandbytes")  # without its optional CPU kernels it complains about 4-bit inference
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        import bitsandbytes
    finally:
        quiet.setLevel(level)
        torch.set_flush_denormal(False)  # its processor library was compiled to flush them, for the whole process
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, betas=(0.9, 0.999), eps=1e-8)
    return optimizer


def rate_factor(step: int, steps: int, config: LoopConfig) -> float:
    """Return what the rates are multiplied with in `step` (0-based) of `steps`, above 0 and at most 1.

    All schedules but ``slanted_triangular`` and ``one_cycle``, which rise in their own way, rise linearly over
    ``warmup_ratio`` of the steps. linear falls to 0 at the end, cosine along half a cosine to ``final_ratio``, constant
    stays, wsd (warmup-stable-decay, Hu et al. 2024, MiniCPM) stays and falls linearly to 0 over the last
    ``decay_ratio``; the others are in `schedule`.
    """
    warmup = math.ceil(steps * config.warmup_ratio)
    found = shape(config.schedule, step, steps, warmup)
    if found is not None:
        return found
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "linear":
        return 1.0 - done
    if config.schedule == "cosine":
        return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1.0 + math.cos(math.pi * done))
    if config.schedule == "constant":
        return 1.0
    decay = max(1, math.ceil(steps * config.decay_ratio))
    return min(1.0, (steps - step) / decay)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
