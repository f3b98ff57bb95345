"""`arena`: ways of reading long documents compared on one budget, each in its own process, on the same documents.

An arena folder holds `arms/NAME/seed_S` (a run each, with `arm.json` when complete), `arena.json`, `arena.md` and
`arena.svg`.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.config import Config, build_config
from tinyhat.data.dataset import Dataset
from tinyhat.data.labels import LabelSpace
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader, Reading
from tinyhat.errors import UserError
from tinyhat.run import Run, read_json, remove, write_json
from tinyhat.verb import make_callable

Say = Callable[[str], None]
ARMS: dict[str, dict[str, Any]] = {
    "linear": {"encoder.model": "linear"},
    **{n: {"reading.strategy": n} for n in ("head", "tail", "head_tail", "middle", "random", "tfidf", "textrank")},
    "windows": {"reading.strategy": "windows"},
    **{
        f"windows_{vote}": {"reading.strategy": "windows", "reading.vote": vote}
        for vote in ("mean_probability", "max", "top_k", "majority", "attention", "transformer")
    },
}
DEFAULT = ("linear", "head", "tail", "head_tail", "middle", "tfidf", "textrank", "windows", "windows_max",
           "windows_attention", "windows_transformer")  # fmt: skip
PROBE = 8  # steps that tell how fast an arm is, after as many that are not counted
ALONE = 24  # documents predicted one at a time, for the latency


@dataclass(frozen=True)
class Budget:
    """What each arm may spend on training, exactly one of the two.

    Attributes:
        tokens: tokens computed in training; what a strategy does not read costs nothing.
        seconds: wall-clock seconds of training steps, at the speed of a short trial on this machine.
    """

    tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Entry:
    """One run of the arena: a way of reading under one seed."""

    folder: Path
    arm: str
    seed: int

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.folder / "arms" / self.arm / f"seed_{self.seed}"


def arena(
    data: str | Path,
    out: str | Path,
    arms: Sequence[str] = (),
    seeds: int = 3,
    tokens: int | None = None,
    minutes: float | None = None,
    min_tokens: int = 0,
    settings: Mapping[str, Any] | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Compare ways of reading long documents: ``tinyhat.arena("laws.csv", "arenas/laws", minutes=10)``.

    Args:
        data: file, folder, corpus name or hub name, as on the command line.
        out: the arena folder; an arena that was stopped goes on.
        arms: names of arms; none: the usual ones.
        seeds: trainings of every arm.
        tokens: budget of one training, or `minutes` instead.
        minutes: of training steps, by the clock.
        min_tokens: only documents at least so long take part.
        settings: dotted configuration keys and their values, for all arms.
        say: where remarks go.

    Raises:
        UserError: as `tinyhat.arena.arena_config`.
    """
    config = build_config(None, {**(settings or {}), "data.path": str(data)})
    budget = Budget(tokens, None if minutes is None else 60 * minutes)
    return arena_config(config, Path(out), arms or DEFAULT, seeds, budget, min_tokens, 1, say)


def arena_config(
    config: Config,
    out: Path,
    arms: Sequence[str],
    seeds: int,
    budget: Budget,
    min_tokens: int = 0,
    jobs: int = 1,
    say: Say = print,
) -> dict[str, Any]:
    """Train every arm under every seed, compare them and write table and plot into `out`.

    Args:
        config: what all arms share.
        out: the arena folder; complete runs in it are used again, the others are trained.
        arms: names out of ARMS; the first one that is not ``linear`` is what the others are compared with.
        seeds: train under the seeds 0, 1, …
        budget: of one training.
        min_tokens: only documents with at least so many tokens take part, in all splits.
        jobs: arms trained at the same time.
        say: where remarks go.

    Returns:
        ``settings``, ``arms`` (name to figures), ``failed`` (name to the sentence), as in arena.json.

    Raises:
        UserError: an unknown arm, no or two budgets, an arena with other settings in `out`, all arms failed.
    """
    for arm in arms:
        if arm not in ARMS:
            raise UserError(f"--arms {arm!r} is not one of {', '.join(ARMS)}")
    if (budget.tokens is None) == (budget.seconds is None):
        raise UserError("an arena needs one budget: give --tokens N or --minutes M")
    settings: dict[str, Any] = {"config": config.model_dump(mode="json"), "tokens": budget.tokens}
    settings |= {"seconds": budget.seconds, "min_tokens": min_tokens}
    read_dataset(config.data, 0)  # what is wrong with the data is said once, before any process starts
    _claim(out, settings)
    entries = [Entry(out, arm, seed) for seed in range(seeds) for arm in arms]
    todo = [entry for entry in entries if not (entry.path / "arm.json").exists()]
    say(f"arena: {len(entries)} runs, {len(entries) - len(todo)} of them complete already")
    with ThreadPoolExecutor(jobs) as pool:
        for entry, problem in zip(todo, pool.map(_in_process, todo), strict=True):
            say(f"arena: {entry.arm}, seed {entry.seed}: {problem or 'done'}")
    from tinyhat.arena_table import conclude

    return conclude(out, arms, seeds, settings, config.evaluate.bootstrap or 1000)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists():
        if read_json(path) != settings:
            raise UserError(f"{out} holds an arena with other data or settings: name another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and no arena: name a new --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _in_process(entry: Entry) -> str | None:
    """Run one entry in a process of its own, so that its peak memory is its own; return what went wrong, or None."""
    process = multiprocessing.get_context("spawn").Process(target=_arm, args=(entry,))
    process.start()
    process.join()
    failed = entry.path.with_suffix(".failed.json")
    if process.exitcode == 0:
        remove(failed)
        return None
    return str(read_json(failed)["error"]) if failed.exists() else f"ended with exit code {process.exitcode}"


def _arm(entry: Entry) -> None:
    entry.path.parent.mkdir(parents=True, exist_ok=True)
    with entry.path.with_suffix(".log").open("a", encoding="utf-8") as log, redirect_stderr(log), redirect_stdout(log):
        try:
            run_arm(entry, lambda sentence: print(sentence, file=log, flush=True))
        except UserError as error:
            write_json(entry.path.with_suffix(".failed.json"), {"error": str(error)})
            sys.exit(2)


def run_arm(entry: Entry, say: Say) -> dict[str, Any]:
    """Train and measure one entry; an interrupted one is resumed.

    Returns:
        The figures of arm.json: training seconds and tokens, peak memory (GB), documents/s of training, coverage (share
        of the tokens of the measured split that are read) and the median milliseconds of a document predicted alone.
    """
    from tinyhat.pipeline import train_dataset

    settings = read_json(entry.folder / "settings.json")
    tree = {f"{s}.{k}": v for s, keys in settings["config"].items() for k, v in keys.items()}
    config = build_config(None, tree | ARMS[entry.arm] | {"train.seed": entry.seed, "evaluate.baseline": False})
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
    write_json(entry.path / "arm.json", figures)
    remove(run.checkpoints)
    return figures


def long_documents(dataset: Dataset, model: str, least: int) -> Dataset:
    """Return the documents of at least `least` tokens (special tokens not counted) of every split.

    Raises:
        UserError: a split has none, or pairs.
    """
    from tinyhat.encoder.load import load_tokenizer

    reader = Reader(load_tokenizer("minilm" if model == "linear" else model), Config().reading)
    splits = {}
    for name, split in dataset.splits.items():
        rows = np.flatnonzero(reader.read_cached(split.texts, split.pairs).tokens_total >= least)
        if not len(rows):
            raise UserError(f"--min-tokens {least}: no document of the {name} split of {dataset.name} is so long")
        splits[name] = split.take(rows)
    labels = dataset.labels
    if dataset.task != "regression":
        counts = np.asarray(splits["train"].targets.dense().sum(axis=0)).astype(np.int64)
        labels = LabelSpace(labels.names, counts, labels.declared)
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
    from tinyhat.train.classifier import build_trainer, prepare

    assert budget.seconds is not None
    trial = beside.with_suffix(".trial")
    trainer = build_trainer(prepare(config, dataset, say), config, dataset, Run(trial), None)[0]
    spent = []
    for _ in range(2 * PROBE):
        begin = time.perf_counter()
        trainer.train_step()
        spent.append(time.perf_counter() - begin)
    remove(trial)
    each = float(np.mean(spent[PROBE:]))
    steps = max(1, int(budget.seconds / each))
    say(f"arena: {each:.3f} s a step, {steps} steps in {budget.seconds:.0f} s")
    return steps


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


make_callable(__name__, "arena", __name__)
