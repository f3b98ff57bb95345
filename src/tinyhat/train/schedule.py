"""Learning-rate schedules with a shape of their own: inverse square root, slanted triangular, one-cycle."""

from __future__ import annotations

import math

SLANT = 32.0  # highest over lowest rate of the slanted triangle
CYCLE_START, CYCLE_END, CYCLE_UP, CYCLE_DOWN = 0.1, 1e-3, 0.45, 0.9


def shape(name: str, step: int, steps: int, warmup: int) -> float | None:
    """Return the factor of schedule `name` in `step` (0-based) of `steps`; None where the schedule is not one of these.

    Args:
        name: of the schedule.
        step: 0-based.
        steps: of the whole run.
        warmup: steps in which the rate rises.
    """
    if name == "inverse_sqrt":
        return inverse_sqrt(step, warmup)
    if name == "slanted_triangular":
        return slanted_triangular(step, steps, warmup)
    if name == "one_cycle":
        return one_cycle(step, steps)
    return None


def inverse_sqrt(step: int, warmup: int) -> float:
    """Rise linearly over `warmup` steps, then fall as 1 / sqrt(step) (Vaswani et al. 2017, equation 3)."""
    warmup = max(1, warmup)
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


def slanted_triangular(step: int, steps: int, warmup: int) -> float:
    """Rise over `warmup` steps from 1/32, fall back to it linearly (Howard & Ruder 2018, ULMFiT, equation 3).

    The paper rises over a tenth of the steps: ``warmup_ratio=0.1``.
    """
    cut = max(1, warmup)
    share = step / cut if step < cut else 1 - (step - cut) / max(1, steps - cut)
    return (1 + share * (SLANT - 1)) / SLANT


def one_cycle(step: int, steps: int) -> float:
    """Rise from a tenth to 1 over 45% of the steps, fall back until 90%, then to a thousandth.

    Smith & Topin 2018, "Super-Convergence": one cycle shorter than the run, ends a factor of 10 below its height, and
    orders of magnitude less at last. Momentum is not cycled: AdamW keeps its betas.
    """
    done = (step + 0.5) / steps
    if done < CYCLE_UP:
        return CYCLE_START + (1 - CYCLE_START) * done / CYCLE_UP
    if done < CYCLE_DOWN:
        return 1 - (1 - CYCLE_START) * (done - CYCLE_UP) / (CYCLE_DOWN - CYCLE_UP)
    return CYCLE_START - (CYCLE_START - CYCLE_END) * (done - CYCLE_DOWN) / (1 - CYCLE_DOWN)
