"""AdamW for weights stored in 16 bits: master weights, split masters, stochastic rounding, Kahan compensation.

The update is computed in fp32 whatever is stored (Loshchilov & Hutter 2019, algorithm 2); what differs is how it gets
back into the parameters. Written with torch's multi-tensor functions: one launch for many tensors on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.random import SeedSequence

Tensors = list[torch.Tensor]
CHUNK = 1 << 24  # values worked on at once: 192 MiB of fp32 temporaries beside them


class LowAdamW(torch.optim.Optimizer):
    """AdamW whose parameters, gradients and states may be 16-bit.

    Args:
        groups: parameter groups with ``lr`` and ``weight_decay``.
        states: dtype of the two moments.
        master: ``none``, ``fp32`` or ``split`` (bf16 parameters only).
        rounding: ``once``, ``stochastic`` or ``Kahan``; a master excludes the last two.
        originals: fp32 weights of parameters that were rounded already, by parameter: where masters begin.
        seed: of stochastic rounding.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        states: torch.dtype,
        master: str = "none",
        rounding: str = "once",
        originals: dict[torch.Tensor, torch.Tensor] | None = None,
        seed: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "betas": betas, "eps": eps})
        self.states, self.master, self.rounding, self.seed = states, master, rounding, seed
        self.originals = originals or {}
        self.gradients: dict[torch.Tensor, torch.Tensor] = {}
        self.order = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient, in `gradients` (fp32, added up over packs) or in ``.grad``."""
        for group in self.param_groups:
            for chunk in _chunks([p for p in group["params"] if self._gradient(p) is not None]):
                self._step(group, chunk)
        self.gradients = {}

    def _gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        return self.gradients.get(parameter, parameter.grad)

    def _step(self, group: dict[str, Any], parameters: Tensors) -> None:
        states = [self._state(p) for p in parameters]
        for state in states:
            state["step"] += 1
        steps = [state["step"] for state in states]  # not the same ones where layers are unfrozen one by one
        gradients = [_fp32(self._gradient(p)) for p in parameters]
        first, second = ([_fp32(s[key]) for s in states] for key in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(denominator, group["eps"])
        weights = [self._weight(p, s) for p, s in zip(parameters, states, strict=True)]
        rates = [-group["lr"] / (1 - beta1**step) for step in steps]
        if self.rounding == "Kahan":
            moves = torch._foreach_mul(weights, -group["lr"] * group["weight_decay"])
            torch._foreach_addcdiv_(moves, first, denominator, rates)
            for parameter, state, move in zip(parameters, states, moves, strict=True):
                kahan_add_(parameter, state["compensation"], move)
        else:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_addcdiv_(weights, first, denominator, rates)
            self._store(parameters, states, weights)
        if self.states != torch.float32:
            torch._foreach_copy_([s["exp_avg"] for s in states], first)
            torch._foreach_copy_([s["exp_avg_sq"] for s in states], second)

    def _state(self, parameter: torch.Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self.states)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.states)
            low = parameter.dtype != torch.float32
            if low and self.master != "none":
                exact = self.originals.pop(parameter, parameter).to(parameter.device, torch.float32)
                state["master"] = exact.clone() if self.master == "fp32" else split(exact)[1]
                if self.master == "split":
                    parameter.copy_(split(exact)[0])
            if low and self.rounding == "Kahan":
                state["compensation"] = torch.zeros_like(parameter)
        return state

    def _weight(self, parameter: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """Return the fp32 weights to move: parameter, master, or the two halves put together."""
        if "master" not in state:
            return _fp32(parameter)
        return state["master"] if self.master == "fp32" else join(parameter, state["master"])

    def _store(self, parameters: Tensors, states: list[dict[str, Any]], weights: Tensors) -> None:
        if self.master != "split" and self.rounding != "stochastic":
            torch._foreach_copy_(parameters, weights)
            return
        for parameter, state, weight in zip(parameters, states, weights, strict=True):
            if self.master == "split":
                high, rest = split(weight)
                parameter.copy_(high)
                state["master"].copy_(rest)
            else:
                parameter.copy_(round_stochastically(weight, self._draws(parameter, state["step"])))

    def _draws(self, parameter: torch.Tensor, step: int) -> torch.Tensor:
        """Return 16 random bits a weight, int32: a function of (seed, step, parameter), so that resume is exact."""
        seed = int(SeedSequence([self.seed, step, self.order[parameter]]).generate_state(1, dtype="uint64")[0]) >> 1
        random = torch.Generator(parameter.device).manual_seed(seed)
        shape, device = parameter.shape, parameter.device
        return torch.randint(0, 1 << 16, shape, dtype=torch.int32, device=device, generator=random)


def round_stochastically(values: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Round fp32 to one of the two neighbouring bf16 values, to the upper with the probability of the distance.

    The 16 low bits of an fp32 number are its position between two bf16 numbers: a uniform 16-bit integer is added to
    them and the upper 16 bits are kept (the expectation of the result is the value; Gupta et al. 2015, section 3.1).

    Args:
        values: fp32, any shape; NaN and infinity are kept.
        draws: int32 of the same shape, uniform in 0 .. 65535.
    """
    bits = values.view(torch.int32)
    moved = torch.where(values.isfinite(), bits + draws, bits)
    return (moved & -65536).view(torch.float32).bfloat16()


def kahan_add_(weight: torch.Tensor, compensation: torch.Tensor, move: torch.Tensor) -> None:
    """Add `move` (fp32) to a low-precision weight in place, carrying what rounding loses (Kahan 1965).

    Args:
        weight: bf16, the sum so far.
        compensation: bf16, what earlier roundings lost; replaced by what this one leaves.
        move: fp32, of the same shape.
    """
    wanted = move + compensation
    before = weight.float()
    weight.copy_(before + wanted)
    compensation.copy_(wanted - (weight.float() - before))


def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp32 values as the nearest bf16 (ties away from zero) and the int16 difference of their bits, exactly."""
    bits = values.view(torch.int32)
    high = (bits + 0x8000) & -65536
    return high.view(torch.float32).bfloat16(), (bits - high).to(torch.int16)


def join(high: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return the fp32 values that `split` took apart."""
    return (high.float().view(torch.int32) + rest.int()).view(torch.float32)


def _fp32(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.float()


def _chunks(parameters: Tensors) -> Iterator[Tensors]:
    chunk: Tensors = []
    for parameter in parameters:
        if chunk and sum(p.numel() for p in chunk) + parameter.numel() > CHUNK:
            yield chunk
            chunk = []
        chunk.append(parameter)
    if chunk:
        yield chunk
