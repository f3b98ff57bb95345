"""The counterpart's configuration: GPT-2 124M, causal, as its own experiment has it, and the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tinyhat.config import TrainConfig
from tinyhat.train.grid import add_grid_flags


@dataclass(frozen=True)
class Settings:
    """GPT-2's shape and training; the rate falls from 6e-4 to a tenth of it."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    context: int = 1024
    micro_batch: int = 12
    accumulation: int = 5
    max_steps: int = 10000
    eval_steps: int = 1000
    learning_rate: float = 6e-4
    final_ratio: float = 0.1
    weight_decay: float = 0.1
    warmup_ratio: float = 0.1
    grad_clip: float = 1.0
    validation_windows: int = 60

    def train_config(self, plan: str, seed: int) -> TrainConfig:
        """Return the package's train section; a pack is one micro-batch."""
        return TrainConfig(
            max_steps=self.max_steps,
            batch_size=self.micro_batch * self.accumulation,
            pack_tokens=self.micro_batch * self.context,
            learning_rate=self.learning_rate,
            head_rate=1.0,
            schedule="cosine",
            final_ratio=self.final_ratio,
            weight_decay=self.weight_decay,
            warmup_ratio=self.warmup_ratio,
            grad_clip=self.grad_clip,
            plan=plan,
            seed=seed,
        )


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; flags of Settings override the defaults."""
    parser = argparse.ArgumentParser(description="The language modelling counterpart (PLAN.md).")
    add_grid_flags(parser, Settings, "data/eltec_eng")
    return parser.parse_args(words)
