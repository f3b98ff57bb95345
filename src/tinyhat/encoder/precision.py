"""Numeric plans as prediction needs them: how weights are stored, and in which dtype matrix products are computed.

What training adds (scaler, master weights, optimiser states, rounding) is in ``train/precision.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from tinyhat.encoder.half import HalfProducts
from tinyhat.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Plan:
    """One numeric plan.

    Attributes:
        name: as in config, log and decision.
        compute: dtype of matrix products (they add up in fp32); below `body` it means autocast.
        reason: why this plan, one clause.
        body: dtype the encoder's parameters are stored in.
        head: dtype the parameters outside the encoder are stored in.
        norms: dtype the encoder's LayerNorm parameters are stored in; None: as the rest of the body.
        matmul: how fp32 products are computed, see ``torch.set_float32_matmul_precision``.
    """

    name: str
    compute: torch.dtype
    reason: str
    body: torch.dtype = torch.float32
    head: torch.dtype = torch.float32
    norms: torch.dtype | None = None
    matmul: str = "highest"

    @property
    def autocast(self) -> bool:
        """Whether products take lower precision than the weights are stored in."""
        return self.compute != self.body

    def emulated(self, device: torch.device) -> bool:
        """Return whether products are fp32 ones rounded to fp16 (`HalfProducts`): fp16's numbers, not its speed."""
        return self.compute == torch.float16 and device.type == "cpu"

    @contextmanager
    def context(self, device: torch.device) -> Iterator[None]:
        """Return the context in which forward passes run (backward passes run in `products` alone)."""
        low = torch.autocast(device.type, self.compute) if self.autocast else nullcontext()
        with self.products(device), low:
            yield

    @contextmanager
    def products(self, device: torch.device) -> Iterator[None]:
        """Return the context of the plan's matrix products, for forward and backward passes alike."""
        if self.emulated(device):
            # in inference mode whole operations arrive undivided, autocast left behind
            inference = torch.is_inference_mode_enabled()
            with (
                torch.inference_mode(False) if inference else nullcontext(),
                torch.no_grad() if inference else nullcontext(),
                HalfProducts(),
            ):
                yield
            return
        before = torch.get_float32_matmul_precision()
        if before != self.matmul:
            torch.set_float32_matmul_precision(self.matmul)
        try:
            yield
        finally:
            if before != self.matmul:
                torch.set_float32_matmul_precision(before)

    def store(self, model: nn.Module) -> None:
        """Store the parameters of `model` as the plan says, and let inputs follow where two dtypes meet.

        Calling it again changes nothing. Buffers (positions, rotary frequencies) stay as they are.

        Args:
            model: a stock ``*ForSequenceClassification`` or language model.
        """
        wanted = self.dtypes(model)
        for name, parameter in model.named_parameters():
            if parameter.dtype != wanted[name]:
                parameter.data = parameter.data.to(wanted[name])
        if len({self.body, self.head, self.norms or self.body}) == 1:
            return
        body = body_parameters(model)
        for module in model.modules():
            own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
            inside = bool(own) and id(own[0]) in body
            if inside and isinstance(module, nn.LayerNorm) and self.norms not in (None, self.body):
                module.forward = MethodType(_norm_forward, module)  # type: ignore[method-assign]
            elif own and not inside and not getattr(module, "follows_weight", False):
                module.follows_weight = True  # type: ignore[assignment]
                module.register_forward_pre_hook(_follow_weight)

    def dtypes(self, model: nn.Module) -> dict[str, torch.dtype]:
        """Return the dtype every floating-point parameter must be stored in, by name."""
        body = body_parameters(model)
        norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        found = {}
        for name, parameter in model.named_parameters():
            low = self.body if id(parameter) in body else self.head
            is_norm = id(parameter) in norms and id(parameter) in body
            found[name] = self.norms if is_norm and self.norms is not None else low
        return found

    def check(self, model: nn.Module, when: str) -> None:
        """Stop unless every parameter is stored as the plan says.

        Raises:
            UserError: the first differences, and `when` they were found.
        """
        wanted = self.dtypes(model)
        stored = {name: p.dtype for name, p in model.named_parameters()}
        require_equal(self.name, wanted, stored, when)


# storage and products; a name here may be given to predict, evaluate and serve
PLANS: dict[str, dict[str, Any]] = {
    "fp32": {"compute": torch.float32},
    "tf32": {"compute": torch.float32, "matmul": "high"},
    "fp32_bf16x1": {"compute": torch.float32, "matmul": "medium"},
    "amp_bf16": {"compute": torch.bfloat16},
    "amp_fp16": {"compute": torch.float16},
    "bf16": {"compute": torch.bfloat16, "body": torch.bfloat16, "head": torch.bfloat16},
    "fp16": {"compute": torch.float16, "body": torch.float16, "head": torch.float16},
    "bf16_body_fp32_head": {"compute": torch.bfloat16, "body": torch.bfloat16},
    "bf16_fp32_norms": {
        "compute": torch.bfloat16, "body": torch.bfloat16, "head": torch.bfloat16, "norms": torch.float32,
    },
}  # fmt: skip


def require_equal(plan: str, wanted: Mapping[str, torch.dtype], found: Mapping[str, torch.dtype], when: str) -> None:
    """Stop where dtypes differ from a plan's.

    Args:
        plan: its name.
        wanted: what the plan says, by name of tensor.
        found: what there is; names only in one of the two are left out.
        when: for the sentence: ``after loading``.

    Raises:
        UserError: naming the first three differences.
    """
    off = [
        f"{name} is {_short(found[name])}, not {_short(dtype)}"
        for name, dtype in wanted.items()
        if name in found and found[name] != dtype
    ]
    if off:
        more = f" and {len(off) - 3} more" if len(off) > 3 else ""
        raise UserError(f"plan {plan} is not what it says {when}: {', '.join(off[:3])}{more}")


def check_file(plan: Plan, model: nn.Module, folder: Path) -> None:
    """Stop unless `folder` holds the weights of `model` in the dtypes of `plan` (a file in higher precision may pass).

    Raises:
        UserError: the file keeps fewer bits than the plan says.
    """
    stored: dict[str, torch.dtype] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in _SAFETENSORS:
                stored[name] = _SAFETENSORS[entry["dtype"]]
    wanted = plan.dtypes(model)
    low = {n: d for n, d in stored.items() if n in wanted and d.itemsize < wanted[n].itemsize}
    require_equal(plan.name, wanted, low, f"in {folder}")


_SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def body_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the encoder's parameters (``base_model_prefix``); the others are the head's."""
    unwrap = getattr(model, "get_base_model", None)  # a peft wrapper's base_model is the classifier, head and all
    base = getattr(unwrap() if callable(unwrap) else model, "base_model", None)
    return {id(p) for p in base.parameters()} if isinstance(base, nn.Module) else set()


def pick_device() -> torch.device:
    """Return the GPU of this process where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_plan(name: str, device: torch.device) -> Plan:
    """Return the plan called `name`; ``auto`` takes bf16 products where the hardware has them, else fp32.

    Raises:
        UserError: no plan of that name.
    """
    if name == "auto":
        fast, reason = has_bf16(device)
        return Plan("amp_bf16" if fast else "fp32", torch.bfloat16 if fast else torch.float32, reason)
    if name not in PLANS:
        hint = did_you_mean(name, PLANS)
        raise UserError(f"{name!r} is not a numeric plan of prediction (there are auto, {', '.join(PLANS)}){hint}")
    return Plan(name, reason="asked for", **PLANS[name])


def has_bf16(device: torch.device) -> tuple[bool, str]:
    """Return whether `device` multiplies bf16 matrices in hardware, and the clause that says so."""
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


def _norm_forward(norm: nn.LayerNorm, hidden: torch.Tensor) -> torch.Tensor:
    """LayerNorm in fp32 between low-precision neighbours."""
    normed = nn.functional.layer_norm(hidden.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return normed.to(hidden.dtype)


def _follow_weight(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast a head module's input to the dtype its weights are stored in."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
