"""A small corpus whose labels can be read off its words, written as files or given as a Dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.config import DataConfig
from tinyhat.data.dataset import Dataset
from tinyhat.data.read import read_dataset

TOPICS = ("fish", "milk", "ship", "tax", "trade")
FILLER = ("law", "court", "market", "union", "state", "rule", "year")


def tiny_rows(task: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` documents of unequal length with the columns id, text and label, labels or targets a and b."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        topics = sorted(
            random.choice(len(TOPICS), size=1 if task == "single" else random.integers(0, 4), replace=False)
        )
        words = [TOPICS[t] for t in topics for _ in range(3)] + list(random.choice(FILLER, size=random.integers(2, 30)))
        row: dict[str, Any] = {"id": f"d{i}", "text": " ".join(random.permutation(words))}
        if task == "single":
            row["label"] = TOPICS[topics[0]]
        elif task == "multi":
            row["labels"] = [TOPICS[t] for t in topics]
        else:
            row |= {"a": 100.0 + 10 * len(topics), "b": -0.01 * row["text"].count("law")}
        rows.append(row)
    return rows


def write_tiny(folder: Path, task: str, train: int = 96, dev: int = 48, test: int = 48) -> Path:
    """Write train.jsonl, dev.jsonl and test.jsonl into `folder` and return it; a split of 0 documents is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": train, "dev": dev, "test": test}.items()):
        if count:
            lines = "".join(json.dumps(row) + "\n" for row in tiny_rows(task, count, seed))
            (folder / f"{name}.jsonl").write_text(lines)
    return folder


def tiny_dataset(folder: Path, task: str, **sizes: int) -> Dataset:
    """Write a tiny corpus and read it back."""
    target = ("a", "b") if task == "regression" else ()
    return read_dataset(DataConfig(path=str(write_tiny(folder, task, **sizes)), target=target), 0)
