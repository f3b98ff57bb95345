"""Numeric plans: in which dtype the encoder computes. Weights are stored in fp32 in every plan here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from tinyhat.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Plan:
    """One numeric plan.

    Attributes:
        name: as in config, log and decision.
        compute: dtype of matrix products; float32 means no autocast.
        reason: why this plan, one clause.
    """

    name: str
    compute: torch.dtype
    reason: str

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which forward passes run (backward passes run outside it)."""
        if self.compute == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.compute)


PLANS = {"fp32": torch.float32, "amp_bf16": torch.bfloat16}


def pick_device() -> torch.device:
    """Return the GPU of this process where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_plan(name: str, device: torch.device) -> Plan:
    """Return the plan called `name`; ``auto`` takes bf16 products where the hardware has them, else fp32.

    Raises:
        UserError: no plan of that name.
    """
    if name == "auto":
        fast, reason = _has_bf16(device)
        return Plan("amp_bf16" if fast else "fp32", torch.bfloat16 if fast else torch.float32, reason)
    if name not in PLANS:
        hint = did_you_mean(name, PLANS)
        raise UserError(f"train.plan = {name!r} is not a numeric plan (there are auto, {', '.join(PLANS)}){hint}")
    return Plan(name, PLANS[name], "asked for")


def _has_bf16(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, f"{torch.cuda.get_device_name(device)} {'has' if fast else 'lacks'} bf16 products"
    if device.type == "cpu":
        found = _cpu_bf16()
        return bool(found), f"the processor has {found}" if found else "the processor has neither AMX nor AVX-512 bf16"
    return False, f"bf16 is not used on {device.type}"


def _cpu_bf16() -> str | None:
    # torch.cpu.get_capabilities is new in torch 2.12; before it the same facts are private functions
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return next((name for name in ("amx_bf16", "avx512_bf16") if has.get(name)), None)
    checks = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return next((name for name, check in checks.items() if getattr(torch.cpu, check, bool)()), None)
