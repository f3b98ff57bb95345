"""One arm of an arena under one seed, a process of its own: ``python -m tinyhat.arena_arm ARENA ARM SEED``."""

from __future__ import annotations

import gc
import math
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.arena import ARMS, Budget, Entry, Say
from tinyhat.config import Config, changed
from tinyhat.data.dataset import Dataset
from tinyhat.data.labels import LabelSpace
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader, Reading
from tinyhat.errors import UserError
from tinyhat.run import Run, read_json, remove, write_json

PROBE = 8  # steps that tell how fast an arm is, after as many that are not counted
ALONE = 24  # documents predicted one at a time, for the latency


def main(arguments: Sequence[str]) -> int:
    """Run one entry and return the exit code; what goes wrong is kept in one sentence, its traceback goes to stderr.

    Args:
        arguments: the arena folder, the arm and the seed.
    """
    folder, arm, seed = arguments
    entry = Entry(Path(folder), arm, int(seed))
    try:
        run_arm(entry, lambda sentence: print(sentence, flush=True))
    except UserError as error:
        sentence, code = str(error), 2
    except Exception as error:
        traceback.print_exc()
        sentence, code = f"{type(error).__name__}: {error} (see {entry.log})", 1
    else:
        return 0
    write_json(entry.failed, {"error": sentence})
    return code


def run_arm(entry: Entry, say: Say) -> dict[str, Any]:
    """Train and measure one entry; an interrupted one is resumed.

    Returns:
        The figures of arm.json: training seconds and tokens, peak memory (GB), documents/s of training, coverage (share
        of the tokens of the measured split that are read) and the median milliseconds of a document predicted alone.
    """
    from tinyhat.pipeline import train_dataset

    settings = read_json(entry.folder / "settings.json")
    config = changed(settings["config"], ARMS[entry.arm] | {"train.seed": entry.seed, "evaluate.baseline": False})
    dataset = read_dataset(config.data, 0)  # the same splits under every seed
    if settings["min_tokens"]:
        dataset = long_documents(dataset, settings["config"]["encoder"]["model"], settings["min_tokens"])
    run, budget = Run(entry.path), Budget(settings["tokens"], settings["seconds"])
    resume = run.manifest.exists()
    if resume:
        steps = run.read_manifest()["config"]["train"]["max_steps"]
    else:
        steps = None if config.encoder.model == "linear" else affordable_steps(config, dataset, budget, entry.path, say)
        remove(entry.path)
    every = None if steps is None else max(1, math.ceil(steps / 4))
    changes = {"max_steps": steps, "evaluate_every": every}
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    train_dataset(config, dataset, entry.path, resume, say)
    metrics = read_json(run.metrics)
    reading = metrics.get("reading") or {}
    figures = {
        "steps": metrics.get("steps"),
        "train_seconds": metrics.get("train_seconds"),
        "documents_per_second": metrics.get("samples_per_second"),
        "peak_memory_gb": metrics.get("peak_memory_gb"),
        "coverage": reading["tokens_read"] / max(reading["tokens_total"], 1) if reading else 1.0,
        "latency_ms": latency(entry.path, dataset.splits[metrics["split"]].texts[:ALONE]),
        "documents": {name: len(split) for name, split in dataset.splits.items()},
    }
    write_json(entry.figures, figures)
    remove(run.checkpoints)
    return figures


def long_documents(dataset: Dataset, model: str, least: int) -> Dataset:
    """Return the documents of at least `least` tokens (special tokens not counted) of every split.

    Raises:
        UserError: a split has none, or pairs.
    """
    from tinyhat.encoder.load import load_tokenizer
    from tinyhat.head.imbalance import label_counts

    reader = Reader(load_tokenizer(model), Config().reading)
    splits = {}
    for name, split in dataset.splits.items():
        rows = np.flatnonzero(reader.read_cached(split.texts, split.pairs).tokens_total >= least)
        if not len(rows):
            raise UserError(f"--min-tokens {least}: no document of the {name} split of {dataset.name} is so long")
        splits[name] = split.take(rows)
    labels = dataset.labels
    if dataset.task != "regression":
        labels = LabelSpace(labels.names, label_counts(splits["train"].targets), labels.declared)
    note = f"only documents of {least} tokens and more"
    sha256 = f"{dataset.sha256}:{least}"
    return replace(dataset, splits=splits, labels=labels, sha256=sha256, notes=(*dataset.notes, note))


def affordable_steps(config: Config, dataset: Dataset, budget: Budget, beside: Path, say: Say) -> int:
    """Return the optimiser steps that the budget pays for, at least 1: by tokens read, or by a short trial's speed."""
    if budget.tokens is not None:
        from tinyhat.data.packing import capped_lengths
        from tinyhat.encoder.load import load_tokenizer

        split = dataset.splits["train"]
        reading: Reading = Reader(load_tokenizer(config.encoder.model), config.reading).read_cached(
            split.texts, split.pairs
        )
        lengths = capped_lengths(reading, config.reading.max_windows)
        steps = int(budget.tokens / max(float(lengths.mean()) * config.train.batch_size, 1.0))
        say(f"arena: {lengths.mean():.0f} tokens a document, {max(1, steps)} steps for {budget.tokens} tokens")
        return max(1, steps)
    import torch

    assert budget.seconds is not None
    each = step_seconds(config, dataset, beside.with_suffix(".trial"), say)
    gc.collect()  # a trainer refers to itself: only now its model and optimiser are gone and no part of the arm's peak
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    steps = max(1, int(budget.seconds / each))
    say(f"arena: {each:.3f} s a step, {steps} steps in {budget.seconds:.0f} s")
    return steps


def step_seconds(config: Config, dataset: Dataset, trial: Path, say: Say) -> float:
    """Return the seconds of a training step, by a trial in the folder `trial`, of which nothing stays."""
    from tinyhat.train.classifier import build_trainer, prepare

    trainer = build_trainer(prepare(config, dataset, say), config, dataset, Run(trial), None)[0]
    spent = []
    for _ in range(2 * PROBE):
        begin = time.perf_counter()
        trainer.train_step()
        spent.append(time.perf_counter() - begin)
    remove(trial)
    return float(np.mean(spent[PROBE:]))


def latency(run: Path, texts: Sequence[str]) -> float:
    """Return the median milliseconds of predicting a document alone, after one that is not counted."""
    from tinyhat.predict import load

    classifier = load(run)
    spent = []
    for text in [texts[0], *texts]:
        begin = time.perf_counter()
        classifier.predict([text])
        spent.append(1000 * (time.perf_counter() - begin))
    return float(np.median(spent[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
