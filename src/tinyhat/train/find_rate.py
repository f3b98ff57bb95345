"""The rate finder: the rate rises in every step, and the loss says where learning is fastest and where it breaks."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyhat.config import Config
from tinyhat.data.dataset import Dataset
from tinyhat.errors import UserError
from tinyhat.run import Run
from tinyhat.train.classifier import Say, build_trainer, prepare
from tinyhat.train.optim import base_rate

STEPS = 80
LOW, HIGH = 1e-3, 1e3  # of the default rate
BROKEN = 2.0  # a loss of so many times the lowest ends the search
MEMORY = 0.9  # of the running mean of the loss


@dataclass(frozen=True)
class RateCurve:
    """What was found.

    Attributes:
        rates: of the body, one a step, rising.
        losses: running mean of the loss, one a step.
        suggested: the rate where the loss falls fastest, at most a tenth of `highest`.
        highest: the rate where the loss was lowest: training near it is about to break.
    """

    rates: list[float]
    losses: list[float]
    suggested: float
    highest: float


def find_rate(config: Config, dataset: Dataset, say: Say) -> RateCurve:
    """Train on rising rates (Smith 2017, "Cyclical Learning Rates", section 3.3); nothing is kept of the weights.

    Everything else is as training would have it: strategies, batch size, head rate.

    Args:
        config: the whole configuration.
        dataset: with a train split.
        say: where remarks go.

    Raises:
        UserError: as `prepare`; the loss breaks at once.
    """
    settings = config.train.model_copy(
        update={"learning_rate": None, "max_steps": STEPS, "forgetting": None, "tensorboard": False}
    )
    config = config.model_copy(update={"train": settings})
    prepared = prepare(config, dataset, say)
    rate = base_rate(settings, int(prepared.encoder.model.config.hidden_size))
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer, _, _ = build_trainer(prepared, config, dataset, Run(Path(folder)), None)
        trainer.factor = factor
        for _ in range(STEPS):
            try:
                losses.append(float(trainer.train_step()["loss"]))
            except UserError:  # diverged: that is what was looked for
                break
            if broken(losses):
                break
    return read_curve([rate * factor(step) for step in range(len(losses))], losses)


def factor(step: int) -> float:
    """Return the rate of `step` as a multiple of the default: LOW to HIGH, the same factor from step to step."""
    return float(LOW * (HIGH / LOW) ** (step / (STEPS - 1)))


def broken(losses: list[float]) -> bool:
    """Return whether the running mean is BROKEN times its lowest value."""
    means = running_mean(losses)
    return len(means) > 10 and means[-1] > BROKEN * min(means)


def running_mean(losses: list[float]) -> list[float]:
    """Return the exponential mean of losses, corrected for its start at 0 (Kingma & Ba 2015, section 3)."""
    mean, out = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        out.append(mean / (1 - MEMORY**step))
    return out


def read_curve(rates: list[float], losses: list[float]) -> RateCurve:
    """Read a suggestion off losses at rising rates.

    Args:
        rates: one a step, rising by a constant factor.
        losses: as measured.

    Raises:
        UserError: fewer than 10 steps before the loss broke.
    """
    if len(losses) < 10 or not all(map(math.isfinite, losses)):
        raise UserError(
            f"--find-rate: the loss broke after {len(losses)} steps at a rate of {rates[-1] if rates else 0:.1e}: "
            "raise train.batch_size or look at the data"
        )
    means = running_mean(losses)
    lowest = int(np.argmin(means))
    # the steepest fall before the lowest point; the first steps are the mean's own settling
    slopes = np.gradient(np.asarray(means), np.log(rates))
    begin = min(5, max(lowest - 1, 0))
    steepest = begin + int(np.argmin(slopes[begin : lowest + 1])) if lowest > begin else lowest
    # the mean lags 9 steps behind the loss, a factor of 5: its steepest fall may already be at the brink
    return RateCurve(rates, means, float(min(rates[steepest], rates[lowest] / 10)), float(rates[lowest]))
