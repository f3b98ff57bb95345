"""One run of an experiment, and a grid of them: a JSON line per run, one per step, and what is there is not run again.

RESULTS holds `runs.jsonl`, `steps/KEY.jsonl` and `logits/KEY.npy` (fixed documents), for all tasks together.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyhat.errors import UserError
from tinyhat.report.experiment import read_runs
from tinyhat.run import atomic_path, environment, write_bytes
from tinyhat.train.loop import Trainer
from tinyhat.train.meter import Meter, reset_memory
from tinyhat.train.precision import ALIASES, MINIMUM, TRAIN_PLANS, choose_train_plan, describe, missing_need
from tinyhat.train.update import DivergedError
from tinyhat.train.watch import Divergence, Watch
from tinyhat.types import FloatArray, IntArray

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What one run needs, built for its plan and seed.

    Attributes:
        trainer: with `watch` among its strategies.
        watch: what is looked at.
        evaluate: metrics of the model as it is, by name (None for what is no number).
        flops: of a step, from the rows of its documents.
        fixed: fp32 logits of documents that are the same in every run.
    """

    trainer: Trainer
    watch: Watch
    evaluate: Callable[[], dict[str, float | None]]
    flops: Callable[[IntArray], float]
    fixed: Callable[[], FloatArray]


@dataclass(frozen=True)
class Trial:
    """A run to be made: which task, plan and seed, and further facts that tell rows apart.

    Attributes:
        task: ``classification`` or ``language_modeling``.
        plan: as the user called it.
        seed: of everything random.
        row: further columns (model, layout, head, loss reduction).
        settings: everything else that its numbers depend on (steps, rates, limits, data), as JSON has it.
    """

    task: str
    plan: str
    seed: int
    row: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str | int | float | None] = field(default_factory=dict)

    @property
    def setup(self) -> str:
        """Return a short hash of the settings: runs of different ones are not compared."""
        return hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def key(self) -> str:
        """Return the name of the run: a file name."""
        plan = ALIASES.get(self.plan, self.plan)
        return "-".join([self.task, *map(str, self.row.values()), plan, str(self.seed), self.setup]).replace("/", "_")


def choose_plans(text: str) -> list[str]:
    """Return the plans that ``--config`` names: ``all``, ``minimum``, or names with commas.

    Raises:
        UserError: no plan of a name.
    """
    if text == "all":
        return list(TRAIN_PLANS)
    names = list(MINIMUM) if text == "minimum" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        choose_train_plan(name, torch.device("cpu"))
    return names


def list_plans() -> str:
    """Return the table of all plans with their dtypes, as text."""
    rows = [describe(choose_train_plan(name, torch.device("cpu"))) for name in TRAIN_PLANS]
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = ["  ".join(key.ljust(width) for key, width in widths.items())]
    lines += ["  ".join(row[key].ljust(width) for key, width in widths.items()) for row in rows]
    lines += [f"{alias} is {name}" for alias, name in ALIASES.items()]
    return "\n".join(line.rstrip() for line in lines)


def run_grid(
    trials: Iterable[Trial], build: Callable[[Trial], Bench], folder: Path, only_missing: bool, every: int, say: Say
) -> None:
    """Make every run and write it down; a plan that cannot run here is written down as such.

    Args:
        trials: in the order they are run.
        build: makes what a run needs; may raise what its plan raises.
        folder: RESULTS.
        only_missing: leave out what `folder` has, runs that could not run apart.
        every: steps between evaluations (the last step is always evaluated).
        say: where remarks go.
    """
    for trial in trials:
        # read anew each time: two processes may share a grid
        have = {r["key"] for r in read_runs(folder) if r["status"] != "cannot run"} if only_missing else set()
        if trial.plan in ALIASES:
            say(f"{trial.plan} is another name for {ALIASES[trial.plan]}")
        if trial.key in have:
            say(f"{trial.key}: there already")
            continue
        begin = time.perf_counter()
        record: dict[str, Any] = {"key": trial.key, "task": trial.task, "plan": ALIASES.get(trial.plan, trial.plan)}
        record |= {"seed": trial.seed, **trial.row, "setup": trial.setup, "settings": dict(trial.settings)}
        record |= {"environment": environment(), "threads": torch.get_num_threads()}
        record |= _attempt(trial, build, folder, every)
        record["seconds"] = round(time.perf_counter() - begin, 1)
        _append(folder / "runs.jsonl", record)
        say(f"{trial.key}: {_sentence(record)}")


def _attempt(trial: Trial, build: Callable[[Trial], Bench], folder: Path, every: int) -> dict[str, Any]:
    """Try one run; whatever its plan raises becomes part of the record."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = choose_train_plan(trial.plan, device)
    need = missing_need(plan, device)
    if need:
        return {"status": "cannot run", "reason": need}
    reset_memory()
    bench: Bench | None = None
    try:
        bench = build(trial)
        return _run(trial, bench, folder, every)
    except UserError as error:
        return {"status": "cannot run", "reason": str(error)}
    except (RuntimeError, NotImplementedError, ImportError, TypeError, AttributeError) as error:
        if isinstance(error, TypeError | AttributeError) and bench is not None and bench.trainer.progress.step:
            raise  # steps were made: that is a fault of the program, and a record would hide it
        # found by trying: an operation that this device lacks for this dtype, or no memory
        return {"status": "cannot run", "reason": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}


def _run(trial: Trial, bench: Bench, folder: Path, every: int) -> dict[str, Any]:
    trainer, rule = bench.trainer, Divergence()
    meter = Meter(trainer.plan, trainer.accelerator.device)
    lines: list[dict[str, Any]] = []
    diverged: int | None = None
    skipped = tokens = 0
    while trainer.progress.step < trainer.steps:
        batch = trainer.steps_plan.batch(trainer.progress.step)
        work = bench.flops(batch)
        meter.begin()
        try:
            line = trainer.train_step()
        except DivergedError:
            diverged = trainer.progress.step + 1
            break
        meter.end(len(batch), trainer.progress.tokens - tokens, work, bench.watch.looked)
        tokens = trainer.progress.tokens
        facts = bench.watch.facts()
        if line.get("skipped_steps", 0) > skipped:
            facts.pop("unchanged_share", None)  # nothing was meant to move
        skipped = line.get("skipped_steps", 0)
        lines.append(line | facts)
        if rule.diverged(line["loss"]):
            diverged = line["step"]
            break
        if line["step"] % every == 0 and line["step"] < trainer.steps:
            meter.evaluated = True
            lines.append({"step": line["step"], "evaluation": bench.evaluate()})
    _write_lines(folder / "steps" / f"{trial.key}.jsonl", lines)
    record: dict[str, Any] = {"status": "done" if diverged is None else "diverged", "diverged_at": diverged}
    record |= meter.facts() | _summary([line for line in lines if "loss" in line])
    record["states_in_fp32"] = trainer.update.states_in_fp32
    record["metrics"] = bench.evaluate() if diverged is None else None
    if diverged is None:
        with atomic_path(folder / "logits" / f"{trial.key}.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, bench.fixed().astype(np.float32))
    return record


def _summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the steps showed of the training itself."""
    shares = [line["unchanged_share"] for line in steps if "unchanged_share" in line]
    norms = [line["gradient_norm"] for line in steps if line["gradient_norm"] is not None]
    logits = [line["largest_logit"] for line in steps if line["largest_logit"] is not None]
    return {
        "steps": len(steps),
        "first_loss": steps[0]["loss"] if steps else None,
        "last_loss": float(np.mean([line["loss"] for line in steps[-5:]])) if steps else None,
        "skipped_steps": steps[-1].get("skipped_steps", 0) if steps else 0,
        "loss_scale": steps[-1].get("loss_scale") if steps else None,
        "largest_gradient_norm": max(norms, default=None),
        "largest_logit": max(logits, default=None),
        "unchanged_share": round(float(np.mean(shares)), 6) if shares else None,
    }


def _append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line in one write, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, (json.dumps(record, allow_nan=False) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_bytes(path, "".join(json.dumps(_finite(line)) + "\n" for line in lines).encode())


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def _sentence(record: Mapping[str, Any]) -> str:
    if record["status"] == "cannot run":
        return f"cannot run: {record['reason']}"
    rate = record["samples_per_second"]
    speed = f"{'no speed' if rate is None else f'{rate} documents/s'}, {record['seconds']:.0f} s"
    if record["status"] == "diverged":
        return f"diverged at step {record['diverged_at']}, {speed}"
    metrics = ", ".join(f"{k} {v:.4f}" for k, v in list((record["metrics"] or {}).items())[:3] if v is not None)
    return f"loss {record['last_loss']:.4f}, {metrics}, {speed}"
