"""The counterpart's configuration: GPT-2 124M, causal, as its own experiment has it, and the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tinyhat.config import TrainConfig


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


def parse(words: list[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    """Read the command line; flags of Settings override the defaults."""
    parser = argparse.ArgumentParser(description="The language modelling counterpart (PLAN.md).")
    parser.add_argument("--config", default="all", help="all, minimum, or plans with commas between them")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1")
    parser.add_argument("--data", type=Path, default=Path("data/eltec_eng"), help="what prepare_data.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/dtypes"), help="RESULTS")
    parser.add_argument("--limit", type=int, help="at most N windows of each split")
    parser.add_argument("--watch", type=int, default=10, help="steps between two looks at which weights moved")
    parser.add_argument("--only-missing", action="store_true", help="go on with a grid that stopped half-way")
    parser.add_argument("--list", action="store_true", help="print all plans with their dtypes")
    for name, value in Settings.__dataclass_fields__.items():
        kind = float if value.type == "float" else int
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=kind, default=value.default)
    options = parser.parse_args(words)
    return options, Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
