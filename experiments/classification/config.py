"""What the note fixes, in one place, and the command line that may change it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tinyhat.config import TrainConfig
from tinyhat.train.grid import add_grid_flags

LAYOUTS = ("packed", "padded")  # the same effective batch; padded: micro-batches of 8 as the note writes them
HEADS = ("note", "stock")  # the note's dropout and one linear layer; transformers' own head


@dataclass(frozen=True)
class Settings:
    """The note's training configuration."""

    micro_batch: int = 8
    accumulation: int = 4
    max_steps: int = 5000
    eval_steps: int = 500
    learning_rate: float = 2e-5
    head_rate: float = 1.0
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    grad_clip: float = 1.0
    max_tokens: int = 512
    pack_tokens: int = 16384

    def train_config(self, plan: str, seed: int) -> TrainConfig:
        """Return the package's train section."""
        return TrainConfig(
            max_steps=self.max_steps,
            batch_size=self.micro_batch * self.accumulation,
            pack_tokens=self.pack_tokens,
            learning_rate=self.learning_rate,
            head_rate=self.head_rate,
            weight_decay=self.weight_decay,
            warmup_ratio=self.warmup_ratio,
            grad_clip=self.grad_clip,
            plan=plan,
            seed=seed,
        )


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; flags of Settings override the note."""
    parser = argparse.ArgumentParser(description="The document classification experiment (PLAN.md).")
    add_grid_flags(parser, Settings, "data/eurlex57k")
    parser.add_argument("--model", default="roberta-base", help="hub name, folder, minilm, roberta-base:random")
    parser.add_argument("--tokens", type=Path, help="a file of tokens instead of --data (benchmarks/tokens.py)")
    parser.add_argument("--dev_limit", "--dev-limit", type=int, help="measure on at most N dev documents")
    parser.add_argument("--layout", default="packed", choices=[*LAYOUTS, "both"])
    parser.add_argument("--head", default="note", choices=HEADS)
    parser.add_argument("--reduction", default="sum", choices=["sum", "mean"], help="BCE over the labels")
    return parser.parse_args(words)
