"""What an experiment looks at while a model trains: the largest logit, weights that did not move, and divergence."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import torch
from torch import nn

from tinyhat.encoder.load import Encoder
from tinyhat.head.output import last_linear
from tinyhat.train.strategy import Strategy

DIVERGED = 3.0  # times the running median
WINDOW = 50  # steps it runs over
EARLIEST = 5  # losses before the rule speaks


class Watch(Strategy):
    """Largest logit of every step, and every few steps the share of weights that the update left as they were.

    That share is taken over the matrices of layers and head (embedding rows of absent tokens have no reason to move).

    Args:
        every: steps between two looks at the weights (a copy of them is made).

    Attributes:
        looked: whether the newest step was one of those.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.looked = False
        self.largest: torch.Tensor | None = None
        self.before: dict[str, torch.Tensor] | None = None
        self.unchanged: float | None = None

    def prepare(self, encoder: Encoder) -> None:
        """Hook the output layer, and note which matrices are watched."""
        model = encoder.model
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self.matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and id(p) not in tables}
        layer = last_linear(model)
        assert layer is not None, "an experiment's model ends in a linear layer"
        layer.register_forward_hook(self._see)

    def _see(self, module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        if module.training:
            low, high = torch.aminmax(output.detach())  # without abs(), which copies them: 2 GB of a language model
            largest = torch.maximum(high, -low).float()
            self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def before_step(self, step: int) -> None:
        """Start a step's maximum; copy the weights where their move will be looked at."""
        self.largest, self.unchanged = None, None
        self.looked = step % self.every == self.every - 1 or step == 0
        self.before = {n: p.detach().clone() for n, p in self.matrices.items()} if self.looked else None

    def after_step(self, step: int) -> None:
        """Count what stayed."""
        if self.before is None:
            return
        same = sum((self.before[n] == p.detach()).sum() for n, p in self.matrices.items())
        self.unchanged = float(same) / sum(p.numel() for p in self.matrices.values())
        self.before = None

    def facts(self) -> dict[str, float | None]:
        """Return what the step showed, for its log line; what is no number is None."""
        largest = None if self.largest is None else float(self.largest)
        found = {"largest_logit": largest if largest is not None and math.isfinite(largest) else None}
        return found | ({} if self.unchanged is None else {"unchanged_share": round(self.unchanged, 6)})


class Divergence:
    """Says when a run has diverged: a loss that is no number, or above DIVERGED times the running median."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def diverged(self, loss: float) -> bool:
        """Return whether this step's loss shows divergence."""
        if not math.isfinite(loss):
            return True
        far = len(self.losses) >= EARLIEST and loss > DIVERGED * statistics.median(self.losses)
        self.losses.append(loss)
        return far
