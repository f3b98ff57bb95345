"""The one table of training plans: where every number of a step is stored and computed, and what must be true of it.

A training plan *is* a plan of ``encoder/precision.py`` (storage and products) plus what only training has. Names:
P parameters, G gradients, M master weights, S optimiser states, U arithmetic of the update.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn

from tinyhat.encoder.interface import softmax_in
from tinyhat.encoder.precision import PLANS, Plan, choose_plan, has_bf16, require_equal
from tinyhat.errors import UserError, did_you_mean

Master = Literal["none", "fp32", "split"]
Rounding = Literal["each operation", "once", "stochastic", "Kahan"]
States = Literal["fp32", "bf16", "fp16", "int8", "fp8"]
STATE_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.uint8,
    "fp8": torch.float8_e4m3fn,
}
SMALLEST = 4096  # values: smaller tensors keep fp32 states under int8 (bitsandbytes) and fp8 (torchao)
BLOCK = 256  # fp8: tensors that are no whole number of blocks keep fp32 states too
MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")  # torch's and torchao's names, bitsandbytes'
STATIC_SCALE = 2.0**10


@dataclass(frozen=True)
class TrainPlan(Plan):
    """A plan of training.

    Attributes:
        predicts: name of the plan its model is tuned and predicts in.
        fp32_head: true: autocast is off in the head, whose inputs are cast to fp32; false: the head computes as the
            body; None: as its objective set it. The loss is fp32 in every plan.
        scale: loss scaling: ``dynamic`` (starts at 2^16, doubles after 2,000 steps, halves and skips the step on
            overflow), ``static`` (2^10), or none.
        master: ``fp32``: the update moves an fp32 copy, rounded into the parameters; ``split``: the same with the low
            16 bits of it stored beside bf16 parameters.
        states: how AdamW's two moments are stored.
        rounding: U: ``each operation`` rounds every result to the storage dtype, ``once`` computes in fp32 and rounds
            the new weights to nearest, ``stochastic`` rounds them up or down at random, ``Kahan`` carries what rounding
            lost over to the next step.
        fp32_gradients: gradients of several packs add up in fp32, also where parameters are 16-bit.
        compile: the encoder's layers are compiled.
        products: recipe of fp8 or int8 products (torchao), or none.
        softmax: dtype attention weights are rounded to where it is forced, else what the attention path does.
    """

    predicts: str = "fp32"
    fp32_head: bool | None = None
    scale: Literal["none", "dynamic", "static"] = "none"
    master: Master = "none"
    states: States = "fp32"
    rounding: Rounding = "once"
    fp32_gradients: bool = False
    compile: bool = False
    products_recipe: str | None = None
    softmax: Literal["fp32", "low"] | None = None

    @contextmanager
    def context(self, device: torch.device) -> Iterator[None]:
        """Return the context of forward passes: the plan's products, autocast and softmax."""
        with super().context(device), softmax_in(self.softmax):
            yield

    def at_prediction(self, device: torch.device) -> Plan:
        """Return the plan its model is evaluated, tuned and used in."""
        return replace(choose_plan(self.predicts, device), reason=self.reason)

    def check_model(self, model: nn.Module, when: str) -> None:
        """Stop unless parameters, and gradients where there are any, are what the plan says.

        Raises:
            UserError: the first differences.
        """
        self.check(model, when)
        wanted = {f"gradient of {name}": dtype for name, dtype in self.dtypes(model).items()}
        found = {f"gradient of {n}": p.grad.dtype for n, p in model.named_parameters() if p.grad is not None}
        require_equal(self.name, wanted, found, when)

    def check_states(self, optimizer: torch.optim.Optimizer, model: nn.Module, when: str) -> None:
        """Stop unless the optimiser's moments and master weights are stored as the plan says.

        Under int8 and fp8, tensors that are too small for it must have fp32 moments, see `states_in_fp32`.

        Raises:
            UserError: the first tensor that is not.
        """
        master = {"fp32": torch.float32, "split": torch.int16}.get(self.master)
        for name, parameter in model.named_parameters():
            state = optimizer.state.get(parameter, {})
            for key in MOMENTS:
                value = state.get(key)
                if isinstance(value, torch.Tensor) and _stored(value) != self._state_dtype(parameter):
                    raise UserError(f"plan {self.name} is not what it says {when}: {key} of {name} is {_stored(value)}")
            kept = state.get("master")
            low = parameter.dtype != torch.float32
            if state and (None if kept is None else kept.dtype) != (master if low else None):
                raise UserError(f"plan {self.name} is not what it says {when}: the master of {name} is {kept}")

    def _state_dtype(self, parameter: torch.Tensor) -> torch.dtype:
        """Return the dtype that the moments of `parameter` must have."""
        if parameter.dtype != self.body:
            return parameter.dtype  # torch's own AdamW gives states the dtype of their parameter: an fp32 head has fp32
        small = parameter.numel() < SMALLEST or (self.states == "fp8" and parameter.numel() % BLOCK > 0)
        return torch.float32 if self.states in ("int8", "fp8") and small else STATE_DTYPES[self.states]

    def states_in_fp32(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
        """Return the names of parameters whose moments are fp32 though the plan's are lower."""
        if self.states == "fp32":
            return []
        found = {n: optimizer.state.get(p, {}) for n, p in model.named_parameters()}
        return [n for n, s in found.items() if any(k in s and _stored(s[k]) == torch.float32 for k in MOMENTS)]

    def check_logits(self, logits: torch.Tensor, when: str) -> None:
        """Stop unless logits leave the head in the dtype the plan computes the head in.

        Raises:
            UserError: they do not; an fp32 head under autocast without switching it off gives bf16.
        """
        if self.fp32_head is None:
            return
        wanted = torch.float32 if self.fp32_head else self.compute
        require_equal(self.name, {"the head's output": wanted}, {"the head's output": logits.dtype}, when)


def _stored(value: torch.Tensor) -> torch.dtype:
    """Return the dtype of a moment's values: torchao's are tensors of codes and scales that call themselves fp32."""
    codes = getattr(value, "codes", value)
    return codes.dtype if isinstance(codes, torch.Tensor) else value.dtype


FP32 = TrainPlan("fp32", torch.float32, "the default", fp32_head=True)
_LOW: dict[str, Any] = {"predicts": "bf16", "fp32_head": False, "states": "bf16"}
_HALF: dict[str, Any] = {"predicts": "fp16", "fp32_head": False}
_AMP: dict[str, Any] = {"predicts": "amp_bf16", "fp32_head": False}
_AMP16: dict[str, Any] = {"predicts": "amp_fp16", "fp32_head": False, "scale": "dynamic"}

# name: what differs from a plan of prediction; storage and products are those of `predicts`
TRAIN_PLANS: dict[str, dict[str, Any]] = {
    "fp32": {"fp32_head": True},
    "tf32": {"predicts": "tf32", "fp32_head": True},
    "fp32_bf16x1": {"predicts": "fp32_bf16x1", "fp32_head": True},
    "amp_fp16": _AMP16,
    "amp_bf16": _AMP,
    "amp_bf16_fp32_head": _AMP | {"fp32_head": True},
    "amp_fp16_fp32_head": _AMP16 | {"fp32_head": True},
    "amp_bf16_8bit": _AMP | {"states": "int8"},
    "amp_fp16_8bit": _AMP16 | {"states": "int8"},
    "amp_bf16_fp8opt": _AMP | {"states": "fp8"},
    "bf16_pure": _LOW | {"rounding": "each operation"},
    "bf16_pure_fused": _LOW,
    "bf16_fp32_states": _LOW | {"states": "fp32", "fp32_gradients": True},
    "bf16_master": _LOW | {"states": "fp32", "master": "fp32", "fp32_gradients": True},
    "bf16_split_master": _LOW | {"states": "fp32", "master": "split", "fp32_gradients": True},
    "bf16_kahan": _LOW | {"rounding": "Kahan"},
    "bf16_sr": _LOW | {"rounding": "stochastic"},
    "bf16_body_fp32_head": _LOW | {"predicts": "bf16_body_fp32_head", "fp32_head": True},
    "bf16_fp32_norms": _LOW | {"predicts": "bf16_fp32_norms"},
    "bf16_softmax_lowp": _LOW | {"softmax": "low"},
    "bf16_fp32_softmax": _LOW | {"softmax": "fp32"},
    "bf16_compile": _LOW | {"rounding": "each operation", "compile": True},
    "fp16_naive": _HALF | {"states": "fp16", "rounding": "each operation"},
    "fp16_naive_fused": _HALF | {"states": "fp16"},
    "fp16_static": _HALF | {"states": "fp16", "scale": "static"},
    "fp16_master": _HALF | {"master": "fp32", "scale": "dynamic", "fp32_gradients": True},
    "fp8_tensorwise": _AMP | {"products_recipe": "tensorwise", "compile": True},
    "fp8_rowwise": _AMP | {"products_recipe": "rowwise", "compile": True},
    "fp8_rowwise_gw_hp": _AMP | {"products_recipe": "rowwise_with_gw_hp", "compile": True},
}
ALIASES = {
    "fp32_true": "fp32",
    "fp32_baseline": "fp32",
    "fp32_tf32_matmul": "tf32",
    "bf16_naive": "bf16_pure",
    "bf16_no_compile": "bf16_pure",
    "amp_fp16_8bit_adam": "amp_fp16_8bit",
    "amp_bf16_8bit_adam": "amp_bf16_8bit",
    "cpu_amp_bf16": "amp_bf16",
}
MINIMUM = (
    "fp32", "tf32", "amp_bf16", "amp_fp16", "amp_bf16_fp32_head", "bf16_pure", "bf16_master", "bf16_sr",
    "bf16_body_fp32_head", "amp_bf16_8bit",
)  # fmt: skip


def choose_train_plan(name: str, device: torch.device) -> TrainPlan:
    """Return the training plan called `name`; ``auto``: bf16 products and an fp32 head where the hardware has bf16.

    Raises:
        UserError: no plan of that name.
    """
    reason = "asked for"
    if name == "auto":
        fast, reason = has_bf16(device)
        name = "amp_bf16_fp32_head" if fast else "fp32"
    if name in ALIASES:
        reason, name = f"{name} is another name for it", ALIASES[name]
    if name not in TRAIN_PLANS:
        known = [*TRAIN_PLANS, *ALIASES]
        hint = did_you_mean(name, known)
        raise UserError(f"train.plan = {name!r} is not a numeric plan (there are auto, {', '.join(known)}){hint}")
    settings = TRAIN_PLANS[name]
    return TrainPlan(name=name, reason=reason, **PLANS[settings.get("predicts", "fp32")], **settings)


def as_train_plan(plan: Plan) -> TrainPlan:
    """Return `plan` as a training plan: a plan of prediction trains with fp32 states and no scaler, head untouched."""
    if isinstance(plan, TrainPlan):
        return plan
    own = {f: getattr(plan, f) for f in Plan.__dataclass_fields__}
    return TrainPlan(**own, predicts=plan.name)


def missing_need(plan: TrainPlan, device: torch.device) -> str:
    """Return why `plan` cannot run here as far as that is known without trying, or an empty string.

    Packages are looked up and products tried; whether an operation exists is found by running the plan.
    """
    if plan.states == "int8" and importlib.util.find_spec("bitsandbytes") is None:
        return "needs the package bitsandbytes (pip install 'tinyhat[lowbit]')"
    if (plan.states == "fp8" or plan.products_recipe) and importlib.util.find_spec("torchao") is None:
        return "needs the package torchao, which is not installed"
    if plan.products_recipe and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        return "needs a GPU with fp8 products (compute capability 8.9)"
    if plan.matmul == "medium" and device.type == "cuda":
        return "is TF32 on a GPU, the same as tf32"
    if plan.matmul != "highest" and not _rounds_inputs(plan, device):
        return f"is fp32 here: set to '{plan.matmul}', products on this {device.type} lose no bits of their inputs"
    return ""


@lru_cache
def _rounds_inputs(plan: TrainPlan, device: torch.device) -> bool:
    """Return whether products of fp32 matrices lose 1 + 2^-12, which needs 12 bits: TF32 has 10, bf16 7."""
    value = 1 + 2.0**-12
    a = torch.full((512, 512), value, device=device)
    with plan.products(device):
        return abs(float((a @ torch.ones_like(a))[0, 0]) - 512 * value) > 0.06


def describe(plan: TrainPlan) -> dict[str, str]:
    """Return the dtypes of `plan` as a row of the table: column to text."""

    def short(dtype: torch.dtype) -> str:
        return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(dtype).removeprefix("torch.")]

    products = plan.products_recipe and f"fp8 {plan.products_recipe}"
    matmul = {"highest": short(plan.compute), "high": "TF32", "medium": "bf16 (oneDNN)"}[plan.matmul]
    return {
        "plan": plan.name,
        "body": short(plan.body) + (" (norms fp32)" if plan.norms else ""),
        "head": short(plan.head),
        "products": products or matmul,
        "autocast": ("all but head and loss" if plan.fp32_head else "all but loss") if plan.autocast else "none",
        "head computed in": "fp32" if plan.fp32_head else short(plan.compute),
        "loss scale": plan.scale,
        "master": plan.master,
        "states": plan.states,
        "update": plan.rounding,
        "gradients": "fp32" if plan.fp32_gradients or plan.body == torch.float32 else short(plan.body),
        "softmax": plan.softmax or "-",
        "compile": "yes" if plan.compile else "no",
    }
