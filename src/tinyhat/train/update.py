"""From the losses of a step's packs to moved weights, under one plan: scaling, adding up, clipping, skipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tinyhat.config import LoopConfig
from tinyhat.encoder.compile import compile_layers
from tinyhat.errors import UserError
from tinyhat.head.output import head_modules, last_linear, low_while_training
from tinyhat.train.adamw import LowAdamW
from tinyhat.train.optim import build_optimizer
from tinyhat.train.precision import STATIC_SCALE, TrainPlan, missing_need
from tinyhat.train.strategy import Strategy

SMALLEST_SCALE = 2.0**-10  # where even this loss overflows the weights are lost, not the scale too high


@dataclass
class LossScale:
    """What losses are multiplied with so that fp16 gradients stay in range (Micikevicius et al. 2018, section 3.2).

    The rules and their constants are those of ``torch.amp.GradScaler``, which refuses fp16 gradients; whether a step is
    skipped is told by the gradient norm, which is known anyway.

    Attributes:
        value: the factor.
        dynamic: it doubles after `interval` steps without overflow and halves at each overflow.
        good: steps since it last changed.
        skipped: steps skipped so far.
        interval: see `dynamic`.
    """

    value: float
    dynamic: bool
    good: int = 0
    skipped: int = 0
    interval: int = 2000

    def update(self, finite: bool) -> None:
        """Note whether the step's gradients were finite."""
        if not finite:
            self.skipped += 1
        if not self.dynamic:
            return
        if not finite:
            self.value, self.good = self.value / 2, 0
        else:
            self.good += 1
            if self.good == self.interval:
                self.value, self.good = self.value * 2, 0


class DivergedError(UserError):
    """Training produced a number that is none."""


class Update:
    """Gradients and optimiser of one model under one plan.

    Args:
        model: on its device or not yet; its parameters are stored as the plan says when this returns.
        config: the train section.
        plan: what is stored and computed how.
        width: of the encoder, for the learning rate.

    Raises:
        UserError: the plan needs what this machine lacks, or the optimiser refuses the weights.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, plan: TrainPlan, width: int) -> None:
        self.plan, self.clip, self.model = plan, config.grad_clip, model
        need = missing_need(plan, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if need:
            raise UserError(f"train.plan = {plan.name} {need}")
        originals = _originals(model, plan)
        plan.store(model)
        plan.check_model(model, "after building")
        if plan.products_recipe:
            _fp8_products(model, plan.products_recipe)
        if plan.compile:
            compile_layers(model)
        self.optimizer = build_optimizer(model, config, width, plan, originals)
        plan.check_model(model, "after the optimiser was made")
        if plan.fp32_head is not None:
            low_while_training(model, low=not plan.fp32_head)
            self._watch_head()
        self.scale = {
            "none": None,
            "dynamic": LossScale(2.0**16, dynamic=True),
            "static": LossScale(STATIC_SCALE, dynamic=False),
        }[plan.scale]
        self.sums: dict[torch.Tensor, torch.Tensor] = {}
        self.checked = False
        self.states_in_fp32: list[str] = []  # parameters with moments above the plan's, known after the first step

    def _watch_head(self) -> None:
        """Check the dtype of the logits at the first training step, where the head ends in a linear layer."""
        layer = last_linear(self.model)
        if layer is None:
            return

        def check(module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            if module.training:
                handle.remove()
                self.plan.check_logits(output, "in the first step")

        handle = layer.register_forward_hook(check)

    @property
    def adds_in_fp32(self) -> bool:
        """Whether gradients of several packs add up beside the parameters' own ``.grad``."""
        return self.plan.fp32_gradients and self.plan.body != torch.float32

    def backward(self, loss: torch.Tensor, accelerator: Accelerator) -> None:
        """Add the gradient of one pack's share of the loss."""
        with self.plan.products(loss.device):
            accelerator.backward(loss if self.scale is None else loss * self.scale.value)
        if not self.checked:
            self.plan.check_model(self.model, "in the first step")
        if self.adds_in_fp32:
            self._add_up()

    def _add_up(self) -> None:
        """Move the pack's gradients into the fp32 sums."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        known = [p for p in parameters if p in self.sums]
        if known:
            torch._foreach_add_([self.sums[p] for p in known], [p.grad for p in known if p.grad is not None])
        for parameter in parameters:
            if parameter.grad is not None and parameter not in self.sums:
                self.sums[parameter] = parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def unscale(self) -> None:
        """Take the loss scale out of the gradients, in the dtype they are stored in."""
        if self.scale is not None:
            torch._foreach_mul_(self._gradients(), 1.0 / self.scale.value)

    @torch.no_grad()
    def norm(self, accelerator: Accelerator) -> torch.Tensor:
        """Clip the gradients; return their norm before clipping, on the device."""
        if self.plan.body == torch.float32:
            return accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        gradients = self._gradients()
        # squares of fp16 values pass 65,504, and a bf16 norm would know 8 bits of itself
        norm = torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)).norm()
        torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _gradients(self) -> list[torch.Tensor]:
        return list(self.sums.values()) or [p.grad for p in self.model.parameters() if p.grad is not None]

    @property
    def may_skip(self) -> bool:
        """Whether the gradients decide if there is an update."""
        return self.scale is not None

    def step(self, optimizer: Any, finite: bool = True) -> None:
        """Move the weights, or skip the step where the plan scales losses and gradients overflowed.

        Args:
            optimizer: the plan's optimiser, as accelerate wrapped it.
            finite: whether the gradients are numbers.
        """
        if self.scale is not None:
            self.scale.update(finite)
        if finite:
            if isinstance(self.optimizer, LowAdamW):
                self.optimizer.gradients = self.sums
            optimizer.step()
        self.sums = {}
        optimizer.zero_grad(set_to_none=True)
        if not self.checked and finite:
            self.plan.check_states(self.optimizer, self.model, "after the first step")
            self.states_in_fp32 = self.plan.states_in_fp32(self.optimizer, self.model)
            self.checked = True

    def overflowed(self, norm: float) -> bool:
        """Return whether a gradient that is no number is the scale's fault: the step is skipped and the scale falls."""
        dynamic = self.scale is not None and self.scale.dynamic and self.scale.value > SMALLEST_SCALE
        return dynamic and not math.isfinite(norm)

    def facts(self) -> dict[str, Any]:
        """Return what the log says of a step beside loss and norm: loss scale and steps skipped so far."""
        return {} if self.scale is None else {"loss_scale": self.scale.value, "skipped_steps": self.scale.skipped}

    def check_company(self, strategies: Sequence[Strategy], ranks: int) -> None:
        """Refuse what gradients kept beside the parameters' own would miss: hooks that add to them, other ranks.

        Raises:
            UserError: such a strategy, or several ranks, under such a plan.
        """
        if not self.adds_in_fp32:
            return
        if any(type(s).after_backward is not Strategy.after_backward for s in strategies):
            raise UserError(
                f"train.plan = {self.plan.name} adds gradients up in fp32, where strategies miss them: use amp_bf16"
            )
        if ranks > 1:
            raise UserError(f"train.plan = {self.plan.name} runs in one process: use amp_bf16 on several ranks")

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint must keep beside the optimiser's state."""
        if self.scale is None:
            return {}
        values = [self.scale.value, float(self.scale.good), float(self.scale.skipped)]
        return {"loss_scale": torch.tensor(values, dtype=torch.float64)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state` returned."""
        if self.scale is not None and "loss_scale" in state:
            value, good, skipped = state["loss_scale"].tolist()
            self.scale.value, self.scale.good, self.scale.skipped = value, int(good), int(skipped)


def _originals(model: nn.Module, plan: TrainPlan) -> dict[torch.Tensor, torch.Tensor]:
    """Return the fp32 weights that storing will round, by parameter, where a master begins from them."""
    if plan.master == "none":
        return {}
    wanted = plan.dtypes(model)
    return {p: p.detach().clone() for n, p in model.named_parameters() if p.dtype != wanted[n]}


def _fp8_products(model: nn.Module, recipe: str) -> None:
    """Let the layers' linear modules multiply in fp8 with dynamic scales (torchao); head and odd sizes stay."""
    from torchao.float8 import (  # type: ignore[import-not-found,unused-ignore]
        Float8LinearConfig,
        convert_to_float8_training,
    )

    head = {id(m) for m in head_modules(model)}

    def fits(module: nn.Module, _name: str) -> bool:
        sizes = isinstance(module, nn.Linear) and not (module.in_features % 16 or module.out_features % 16)
        return sizes and id(module) not in head

    # a weight's gradient is a product over the tokens of a pack, and fp8 ones want a multiple of 16: torchao adds zeros
    config = replace(Float8LinearConfig.from_recipe_name(recipe), pad_inner_dim=True)
    convert_to_float8_training(model, config=config, module_filter_fn=fits)
