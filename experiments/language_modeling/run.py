"""The language modelling counterpart: the same plans, seeds and records as the classification experiment (PLAN.md).

python experiments/language_modeling/run.py --config all --seeds 3
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from config import Settings, parse
from data import Data, fingerprint, load
from model import NextToken, build, window_losses

from tinyhat.errors import UserError
from tinyhat.run import Run
from tinyhat.train.flops import step_flops
from tinyhat.train.grid import Grid, start
from tinyhat.train.loop import Trainer
from tinyhat.train.precision import FP32, choose_train_plan
from tinyhat.train.trial import Bench, Trial
from tinyhat.train.watch import Watch
from tinyhat.types import FloatArray

FIXED = 16  # validation windows whose last logits are compared between plans


def main() -> None:
    """Run what the command line asks for."""
    start("experiments/language_modeling/run.py", parse(), Settings, prepare)


def prepare(options: argparse.Namespace, settings: Settings) -> Grid:
    """Read the data and refuse what cannot run.

    Raises:
        UserError: no data, or a width that its heads do not divide.
    """
    if settings.width % settings.heads:
        raise UserError(f"--width {settings.width} is no multiple of --heads {settings.heads}")
    data = load(options.data, settings.context, options.limit)
    return Grid(
        "language_modeling",
        [{"model": f"gpt2-{settings.layers}x{settings.width}"}],
        fingerprint(data),
        lambda trial, scratch: bench(trial, data, settings, options.watch, scratch),
    )


def bench(trial: Trial, data: Data, settings: Settings, watch_every: int, scratch: Path) -> Bench:
    """Build the model, the loop and the measures of one run."""
    plan = choose_train_plan(trial.plan, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if plan.softmax:
        raise UserError("it sets the softmax of packed attention, which a causal model does not have")
    encoder = build(settings, data.vocabulary, trial.seed)
    watch = Watch(watch_every)
    config = settings.train_config(trial.plan, trial.seed)
    trainer = Trainer(encoder, NextToken(data), config, plan, Run(scratch), None, (watch,))
    validation = data.validation[: settings.validation_windows]

    def evaluate() -> dict[str, float | None]:
        native, exact = (_validate(trainer, validation, settings.micro_batch, e)[0] for e in (False, True))
        return {"validation_loss": _number(native), "fp32_validation_loss": _number(exact)}

    return Bench(
        trainer,
        watch,
        evaluate,
        lambda rows: step_flops(encoder.model, np.full(len(rows), settings.context), every_token_out=True),
        lambda: _validate(trainer, validation[:FIXED], settings.micro_batch, False)[1],
    )


def _validate(trainer: Trainer, windows: npt.NDArray[np.int64], micro: int, exact: bool) -> tuple[float, FloatArray]:
    """Return the mean loss and the logits after each window's last token [N, V], as trained or (`exact`) in fp32."""
    encoder, plan, device = trainer.encoder, trainer.plan, trainer.accelerator.device
    if exact:
        encoder, plan = replace(encoder, model=copy.deepcopy(encoder.model).float()), FP32
    losses: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    handle = encoder.model.lm_head.register_forward_hook(lambda _m, _a, out: last.append(out[:, -1].float().cpu()))
    try:
        with torch.no_grad(), plan.context(device):
            for begin in range(0, len(windows), micro):
                ids = torch.from_numpy(windows[begin : begin + micro]).to(device)
                losses.append(window_losses(encoder, ids).cpu())
    finally:
        handle.remove()
    return float(torch.cat(losses).mean()), torch.cat(last).numpy()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    main()
