"""The optimiser's parameter groups and the learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from tinyhat.config import PretrainConfig, TrainConfig
from tinyhat.errors import UserError
from tinyhat.head.output import head_names
from tinyhat.train.adamw import LowAdamW
from tinyhat.train.lamb import build_lamb
from tinyhat.train.precision import FP32, STATE_DTYPES, TrainPlan


def base_rate(config: TrainConfig, width: int) -> float:
    """Return the body's learning rate: as configured, or 5e-5 x (768 / width)^2, at most 3e-4.

    5e-5 is the usual rate of 768-wide encoders (Devlin et al. 2019, appendix A.3). Narrower ones take more: the
    384-wide MiniLM trained well at 3e-4 (the founding prototype on EURLEX57K), and nothing above was tried.
    """
    return config.learning_rate or min(3e-4, 5e-5 * (768 / width) ** 2)


def parameter_groups(model: nn.Module, config: TrainConfig, rate: float) -> list[dict[str, object]]:
    """Return AdamW groups: body and head with their rates, each with decay on matrices only.

    Biases, norms and other vectors are not decayed (Loshchilov & Hutter 2019 decay weights; everyone since leaves
    one-dimensional parameters out).
    """
    head = set(head_names(model))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in head, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate * (config.head_rate if is_head else 1.0),
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for (is_head, is_matrix), parameters in groups.items()
    ]


def build_optimizer(
    model: nn.Module,
    config: TrainConfig,
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
        states = STATE_DTYPES[plan.states][0]
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


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Return what the rates are multiplied with in `step` (0-based) of `steps`.

    All schedules rise linearly over ``warmup_ratio`` of the steps. linear falls to 0 at the end, cosine along half a
    cosine to ``final_ratio``, constant stays, wsd (warmup-stable-decay, Hu et al. 2024, MiniCPM) stays and falls
    linearly to 0 over the last ``decay_ratio``.
    """
    warmup = math.ceil(steps * config.warmup_ratio)
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
