"""What a grid of runs says: rows of means over seeds, paired differences, stability, padding tax, ranks of two tasks.

A *row* is a task with everything but plan and seed fixed: model, head, loss reduction, layout, and the *setup*, which
is a hash of all other settings (steps, rates, limits, data). Only runs of one row are compared.
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
ROW = ("task", "model", "head", "reduction", "layout", "setup")
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


def settings_apart(runs: Runs) -> dict[str, str]:
    """Return setup to what sets it apart from the other setups of its task, as text; empty where it is the only one."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        if "setup" in run:
            found.setdefault(run["task"], {})[run["setup"]] = run.get("settings", {})
    words: dict[str, str] = {}
    for setups in found.values():
        names = dict.fromkeys(name for settings in setups.values() for name in settings)
        differ = [n for n in names if len({json.dumps(s.get(n)) for s in setups.values()}) > 1]
        words |= {setup: ", ".join(f"{n} {s.get(n)}" for n in differ) for setup, s in setups.items()}
    return words


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


def emulated(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the plans whose products were emulated: they have no speed."""
    return list(dict.fromkeys(str(r["plan"]) for r in runs if r.get("products") == "emulated"))


@dataclass(frozen=True)
class Tax:
    """Documents/s padded and packed, means over the `seeds` that finished in both; all else of `row` is equal."""

    row: tuple[str, ...]
    plan: str
    seeds: int
    padded: float
    packed: float


def padding_tax(runs: Runs) -> list[Tax]:
    """Return how fast padded and packed runs are, for every plan and row that has both."""
    speeds: dict[tuple[tuple[str, ...], str], dict[str, dict[int, float]]] = {}
    for run in runs:
        if "layout" in run and run["status"] == "done":
            row = tuple(str(run[n]) for n in ROW if n in run and n != "layout")
            found = speeds.setdefault((row, run["plan"]), {}).setdefault(run["layout"], {})
            found |= seeds_of([run], "samples_per_second")
    taxes = []
    for (row, plan), layouts in speeds.items():
        padded, packed = layouts.get("padded", {}), layouts.get("packed", {})
        if seeds := padded.keys() & packed.keys():
            means = (float(np.mean([layout[s] for s in seeds])) for layout in (padded, packed))
            taxes.append(Tax(row, plan, len(seeds), *means))
    return taxes


@dataclass(frozen=True)
class Ranks:
    """How two tasks order the plans: Spearman's rho with its p-value, and plan to (rank, rank), flips first.

    `seeds` is plan to how many seeds its rank rests on in both tasks.
    """

    rho: float
    p: float
    ranks: dict[str, tuple[float, float]]
    seeds: dict[str, tuple[int, int]]


def compare_ranks(first: Mapping[str, Runs], second: Mapping[str, Runs], names: tuple[str, str]) -> Ranks | None:
    """Rank the plans that finished in both tasks by their paired difference to fp32 (1 is best; fp32 among them).

    Differences and not means, because plans may have finished on different seeds, and seeds differ more than plans do.

    Args:
        first: plan to runs of one task.
        second: of the other.
        names: the quality of each.
    """
    found: list[dict[str, Difference]] = []
    for plans, name in zip((first, second), names, strict=True):
        base = seeds_of(plans.get(BASE, []), name)
        pairs = {plan: paired(seeds_of(runs, name), base) for plan, runs in plans.items()}
        found.append({plan: pair for plan, pair in pairs.items() if pair is not None})
    shared = [p for p in found[0] if p in found[1]]
    if len(shared) < 3:
        return None
    signs = [1.0 if name in LOWER_IS_BETTER else -1.0 for name in names]
    # rounded: differences that are equal but for the order of sums are ties
    a, b = (stats.rankdata([round(sign * d[p].mean, 12) for p in shared]) for sign, d in zip(signs, found, strict=True))
    result = stats.spearmanr(a, b)
    order = [shared[i] for i in np.argsort(-np.abs(a - b), kind="stable")]
    ranks = dict(zip(shared, zip(a.tolist(), b.tolist(), strict=True), strict=True))
    return Ranks(
        float(result.statistic),
        float(result.pvalue),
        {p: ranks[p] for p in order},
        {p: (found[0][p].pairs, found[1][p].pairs) for p in order},
    )


def main_row(rows: Mapping[tuple[str, ...], Mapping[str, Runs]], task: str) -> tuple[str, ...] | None:
    """Return the row of `task` with the most plans: the grid."""
    of_task = [row for row in rows if row[0] == task]
    return max(of_task, key=lambda row: len(rows[row]), default=None)
