"""A tiny classifier that trains a few steps under given settings, and what moved in each of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.tiny.corpus import tiny_dataset
from tests.tiny.models import save_tiny

from tinyhat.config import Config, build_config
from tinyhat.encoder.load import Encoder
from tinyhat.run import Run
from tinyhat.train.classifier import Prepared, build_trainer, prepare
from tinyhat.train.loop import Trainer

RATE = 1e-3


@dataclass
class Lesson:
    """A trainer, its encoder, and the weights before training."""

    config: Config
    encoder: Encoder
    trainer: Trainer
    before: dict[str, torch.Tensor]

    def step(self) -> dict[str, float]:
        """Do one step; return how far each parameter moved, the largest entry."""
        old = {n: p.detach().clone() for n, p in self.encoder.model.named_parameters()}
        self.trainer.train_step()
        return {n: float((p.detach() - old[n]).abs().max()) for n, p in self.encoder.model.named_parameters()}

    def moved(self) -> set[str]:
        """Do one step; return the names of what moved."""
        return {name for name, size in self.step().items() if size > 0}


def lesson(tmp_path: Path, family: str = "bert", task: str = "single", run: str = "run", **train: Any) -> Lesson:
    """Return a lesson on the tiny corpus with constant rate, no decay and no dropout, unless `train` says otherwise."""
    model = tmp_path / f"model-{family}"
    if not model.exists():
        save_tiny(model, family)
    data = tmp_path / f"data-{task}"
    dataset = tiny_dataset(data, task)
    settings: dict[str, Any] = {
        "batch_size": 8, "learning_rate": RATE, "head_rate": 10.0, "schedule": "constant", "warmup_ratio": 0.0,
        "weight_decay": 0.0, "plan": "fp32", "max_steps": 50,
    }  # fmt: skip
    flags = {f"train.{key}": value for key, value in (settings | train).items()}
    flags |= {"encoder.model": str(model), "encoder.hidden_dropout": 0.0, "reading.max_tokens": 48}
    config = build_config(None, flags)
    prepared: Prepared = prepare(config, dataset, lambda _: None)
    before = {n: p.detach().clone() for n, p in prepared.encoder.model.named_parameters()}
    folder = Run(tmp_path / run)
    folder.path.mkdir(exist_ok=True)
    trainer, _, _ = build_trainer(prepared, config, dataset, folder, None)
    return Lesson(config, prepared.encoder, trainer, before)
