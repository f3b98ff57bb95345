"""LAMB, the layer-wise adaptive optimiser of large batches (You et al. 2020, "Large Batch Optimization for BERT")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tinyhat.config import PretrainConfig

RATE = 1e-2  # of LTG-BERT, for batches of 32,768 sequences (Samuel et al. 2023)
Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]]


class Lamb(torch.optim.Optimizer):
    """Adam whose step for a tensor is scaled to the tensor's own norm.

    With m and v Adam's bias-corrected moments: u = m / (sqrt(v) + eps) + decay x w, and w falls by
    rate x (|w| / |u|) x u (algorithm 2 of the paper, phi the identity). As in the LTG-BERT trainer the ratio |w| / |u|
    is taken only where weights decay, is 1 where either norm is 0, and is not clipped; gradients are not normalised.

    Args:
        params: parameters or groups of them.
        lr: the rate.
        betas: decay of both moments.
        eps: beside the root of the second moment.
        weight_decay: of every group that does not say its own.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. `closure` is torch's own and must be None."""
        if closure is not None:
            raise ValueError("Lamb takes no closure")
        for group in self.param_groups:
            self._move(group)

    def _move(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        gradients = [p.grad for p in weights]
        for parameter in weights:
            state = self.state[parameter]
            if not state:
                # the count stays on the CPU, where reading it waits for no kernel
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            if state["step"].device.type != "cpu":  # a checkpoint was loaded onto the device
                state["step"] = state["step"].cpu()
            state["step"] += 1
        first, second = ([self.state[p][key] for p in weights] for key in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        steps = [float(self.state[p]["step"]) for p in weights]
        divisor = torch._foreach_div(second, [1 - beta2**n for n in steps])
        torch._foreach_sqrt_(divisor)
        torch._foreach_add_(divisor, group["eps"])
        update = torch._foreach_div(first, [1 - beta1**n for n in steps])
        torch._foreach_div_(update, divisor)
        decay = group["weight_decay"]
        if decay:
            torch._foreach_add_(update, weights, alpha=decay)
            sizes, moves = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(update))
            ratio = torch.where((sizes > 0) & (moves > 0), sizes / moves, 1.0)  # on the device: nothing waits
            for move, factor in zip(update, ratio.unbind(), strict=True):
                move.mul_(factor)
        torch._foreach_add_(weights, update, alpha=-group["lr"])


def build_lamb(model: nn.Module, config: PretrainConfig) -> Lamb:
    """Return LAMB with decay, and so with scaled steps, on matrices other than embeddings, as LTG-BERT was trained.

    Args:
        model: its embeddings have ``embedding`` in their names.
        config: rate and decay.
    """
    groups: dict[bool, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(parameter.ndim >= 2 and "embedding" not in name, []).append(parameter)
    rate = config.learning_rate or RATE
    settings = [{"params": p, "weight_decay": config.weight_decay if decays else 0.0} for decays, p in groups.items()]
    optimizer = Lamb(settings, lr=rate)
    for group in optimizer.param_groups:
        group["base_lr"] = rate
    return optimizer
