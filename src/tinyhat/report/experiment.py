"""What a grid of runs says: rows of means over seeds, paired differences, stability, padding tax, ranks of two tasks.

A *row* is a task with everything but plan and seed fixed (model, head, loss reduction, layout).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tinyhat.errors import UserError

BASE = "fp32"
QUALITY = {"classification": "tuned_micro_f1", "language_modeling": "validation_loss"}
LOWER_IS_BETTER = ("validation_loss", "fp32_validation_loss", "last_loss")
ROW = ("task", "model", "head", "reduction", "layout")
Runs = list[dict[str, Any]]


def read_runs(folder: Path) -> Runs:
    """Return the runs of RESULTS, the newest of each key, in the order they were first made.

    Raises:
        UserError: `folder` holds lines that are no runs.
    """
    path = folder / "runs.jsonl"
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            run = json.loads(line)
            found[run["key"]] = run
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number} is not a run: remove it") from None
    return list(found.values())


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of `count` seeds (deviation None for one)."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean paired difference to fp32 with its 95% interval (Student's t over seeds; None for one pair)."""

    mean: float
    interval: tuple[float, float] | None
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and deviation, or None without a value."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Return the mean of value minus base over the seeds both have.

    Args:
        values: seed to value.
        base: seed to value of fp32.
    """
    seeds = sorted(values.keys() & base.keys())
    if not seeds:
        return None
    differences = np.array([values[s] - base[s] for s in seeds])
    mean = float(differences.mean())
    if len(seeds) < 2:
        return Difference(mean, None, len(seeds))
    half = float(stats.t.ppf(0.975, len(seeds) - 1) * differences.std(ddof=1) / math.sqrt(len(seeds)))
    return Difference(mean, (mean - half, mean + half), len(seeds))


def value_of(run: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a run by name: of its record or its metrics; None where there is none."""
    found = run.get(name, (run.get("metrics") or {}).get(name))
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def by_row(runs: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Runs]]:
    """Return row to plan to runs, in order of appearance."""
    rows: dict[tuple[str, ...], dict[str, Runs]] = {}
    for run in runs:
        row = tuple(str(run[name]) for name in ROW if name in run)
        rows.setdefault(row, {}).setdefault(run["plan"], []).append(run)
    return rows


def seeds_of(runs: Runs, name: str) -> dict[int, float]:
    """Return seed to value of the runs that have it."""
    return {int(r["seed"]): v for r in runs if (v := value_of(r, name)) is not None}


def with_drift(runs: Runs, folder: Path) -> Runs:
    """Return runs with `logit_drift`: how far fixed documents' logits are from fp32's of the same row and seed.

    The root mean square of the difference over that of fp32's logits.
    """
    logits = {r["key"]: folder / "logits" / f"{r['key']}.npy" for r in runs}
    base = {(tuple(str(r.get(n)) for n in ROW), r["seed"]): r["key"] for r in runs if r["plan"] == BASE}
    found = []
    for run in runs:
        other = base.get((tuple(str(run.get(n)) for n in ROW), run["seed"]))
        if other and other != run["key"] and logits[run["key"]].exists() and logits[other].exists():
            a, b = (np.load(logits[k], allow_pickle=False).astype(np.float64) for k in (run["key"], other))
            if a.shape == b.shape and np.isfinite(a).all():
                drift = float(np.sqrt(np.square(a - b).mean()) / np.sqrt(np.square(b).mean()))
                found.append(run | {"logit_drift": drift})
                continue
        found.append(run)
    return found


def stability(plans: Mapping[str, Runs]) -> dict[str, dict[int, str]]:
    """Return plan to seed to one word: done, with skipped steps; diverged and where; cannot run."""
    out: dict[str, dict[int, str]] = {}
    for plan, runs in plans.items():
        for run in runs:
            if run["status"] == "diverged":
                word = f"diverged at {run['diverged_at']}"
            elif run["status"] == "done":
                skipped = run.get("skipped_steps") or 0
                word = f"done, {skipped} skipped" if skipped else "done"
            else:
                word = "cannot run"
            out.setdefault(plan, {})[int(run["seed"])] = word
    return out


def reasons(runs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return plan to why it could not run here."""
    return {f"{r['plan']} ({r['task']})": str(r["reason"]) for r in runs if r["status"] == "cannot run"}


def padding_tax(runs: Runs) -> dict[str, tuple[float, float]]:
    """Return plan to documents/s padded and packed, where both rows exist with all else equal."""
    speeds: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for run in runs:
        speed = value_of(run, "samples_per_second")
        if "layout" in run and speed is not None and run["status"] == "done":
            key = (run["plan"], *(str(run.get(n)) for n in ROW if n != "layout"))
            speeds.setdefault(key, {}).setdefault(run["layout"], []).append(speed)
    return {
        key[0]: (float(np.mean(found["padded"])), float(np.mean(found["packed"])))
        for key, found in speeds.items()
        if found.keys() >= {"padded", "packed"}
    }


@dataclass(frozen=True)
class Ranks:
    """How two tasks order the plans: Spearman's rho with its p-value, and plan to (rank, rank), flips first."""

    rho: float
    p: float
    ranks: dict[str, tuple[float, float]]


def compare_ranks(first: Mapping[str, Runs], second: Mapping[str, Runs], names: tuple[str, str]) -> Ranks | None:
    """Rank the plans that finished in both tasks by quality (1 is best; fp32 among them).

    Args:
        first: plan to runs of one task.
        second: of the other.
        names: the quality of each.
    """
    means: list[dict[str, float]] = []
    for plans, name in zip((first, second), names, strict=True):
        sign = 1.0 if name in LOWER_IS_BETTER else -1.0
        values = {p: [v for r in runs if (v := value_of(r, name)) is not None] for p, runs in plans.items()}
        means.append({p: sign * float(np.mean(v)) for p, v in values.items() if v})
    shared = [p for p in means[0] if p in means[1]]
    if len(shared) < 3:
        return None
    a, b = (stats.rankdata([m[p] for p in shared]) for m in means)
    result = stats.spearmanr(a, b)
    order = np.argsort(-np.abs(a - b), kind="stable")
    return Ranks(float(result.statistic), float(result.pvalue), {shared[i]: (float(a[i]), float(b[i])) for i in order})


def main_row(rows: Mapping[tuple[str, ...], Mapping[str, Runs]], task: str) -> tuple[str, ...] | None:
    """Return the row of `task` with the most plans: the grid."""
    of_task = [row for row in rows if row[0] == task]
    return max(of_task, key=lambda row: len(rows[row]), default=None)
