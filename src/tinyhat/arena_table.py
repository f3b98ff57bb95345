"""What an arena found: means over seeds, paired bootstrap against one arm, a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.config import Config
from tinyhat.decision import read_decision
from tinyhat.errors import UserError
from tinyhat.evaluate.bootstrap import bootstrap, interval
from tinyhat.evaluate.metrics import MAIN_METRIC, score_statistic
from tinyhat.evaluate.scores import read_scores
from tinyhat.run import Run, read_json, write_bytes, write_json
from tinyhat.tune.decided import decide
from tinyhat.tune.rule import cross_fitted

FIGURES = ("train_seconds", "steps", "peak_memory_gb", "latency_ms", "documents_per_second", "coverage")
Samples = dict[int, tuple[float, np.ndarray]]
"""Seed to the main metric of that run, and float64 [resamples] of it under the bootstrap."""


def conclude(out: Path, arms: Sequence[str], seeds: int, settings: Mapping[str, Any], resamples: int) -> dict[str, Any]:
    """Compare what is complete in `out`, and write arena.json, arena.md and arena.svg.

    Args:
        out: the arena folder.
        arms: in the order of the table; the first complete one that is not ``linear`` is the one compared with.
        seeds: how many were asked for.
        settings: of the arena.
        resamples: of the bootstrap.

    Raises:
        UserError: no arm is complete.
    """
    found: dict[str, dict[str, Any]] = {}
    samples: dict[str, Samples] = {}
    failed: dict[str, str] = {}
    metric = split = ""
    for arm in arms:
        folders = {seed: out / "arms" / arm / f"seed_{seed}" for seed in range(seeds)}
        done = {seed: folder for seed, folder in folders.items() if (folder / "arm.json").exists()}
        for folder in folders.values():
            if folder.with_suffix(".failed.json").exists():
                failed[arm] = read_json(folder.with_suffix(".failed.json"))["error"]
        if not done:
            failed.setdefault(arm, "did not finish: see its log")
            continue
        measured = [read_json(folder / "metrics.json") for folder in done.values()]
        metric, split = MAIN_METRIC[measured[0]["task"]], measured[0]["split"]
        known = {seed: resampled(folder, resamples) for seed, folder in done.items()}
        samples[arm] = {seed: both for seed, both in known.items() if np.isfinite(both[0])}
        if not samples[arm]:
            failed.setdefault(arm, f"its {metric} is undefined: it predicts one number for all documents")
            continue
        figures = [read_json(done[seed] / "arm.json") for seed in samples[arm]]
        found[arm] = _row(metric, np.array([value for value, _ in samples[arm].values()]), figures)
    if not found:
        raise UserError(f"no arm of {out} is complete: {next(iter(failed.values()))}")
    base = next((arm for arm in found if arm != "linear"), next(iter(found)))
    for arm, row in found.items():
        if arm != base:
            row |= against(samples[base], samples[arm])
    result = {"settings": dict(settings), "split": split, "metric": metric, "compared_with": base}
    result |= {"arms": found, "failed": failed}
    write_json(out / "arena.json", result)
    write_bytes(out / "arena.md", table(result).encode())
    _plot(out / "arena.svg", result)
    return result


def _row(metric: str, values: np.ndarray, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an arm's row: mean and deviation of its main metric and the means of its figures, over the seeds."""
    row: dict[str, Any] = {"seeds": len(values), "metric": metric, "mean": float(values.mean())}
    row["std"] = float(values.std(ddof=1)) if len(values) > 1 else None
    for name in FIGURES:
        numbers = [figure[name] for figure in figures if figure[name] is not None]
        row[name] = float(np.mean(numbers)) if numbers else None
    return row | {"documents": figures[0]["documents"]}


def resampled(folder: Path, resamples: int) -> tuple[float, np.ndarray]:
    """Return the main metric of a run on its main split, and float64 [resamples] of it under the bootstrap.

    On dev, where the rule was fitted, decisions are cross-fitted. The resamples depend on the number of documents
    alone, so that those of two arms are paired.
    """
    run, split = Run(folder), read_json(folder / "metrics.json")["split"]
    scores = read_scores(run.scores, split)
    decision = read_decision(run.model)
    decided = None
    if decision.task != "regression":
        config = Config.model_validate(run.read_manifest()["config"])
        own = decision.fitted_on.get("split") == split
        rule = decision.rule
        decided = (
            cross_fitted(scores, config.tune, config.train.seed, rule.never)[0] if own else decide(rule, scores.logits)
        )
    statistic, name = score_statistic(scores, decided), MAIN_METRIC[decision.task]
    whole = statistic(np.ones((1, len(scores.ids)), np.float32))[name][0]
    return float(whole), bootstrap(statistic, len(scores.ids), resamples, 0)[name]


def against(base: Samples, other: Samples) -> dict[str, Any]:
    """Return how `other` differs from `base`: nothing where no seed is complete in both.

    Returns:
        ``difference`` (mean over the seeds both have), its 95% ``interval`` over documents, a two-sided ``p``, and
        ``compared_seeds``, how many these are.
    """
    both = sorted(base.keys() & other.keys())
    if not both:
        return {}
    difference = float(np.mean([other[seed][0] - base[seed][0] for seed in both]))
    change = np.mean([other[seed][1] - base[seed][1] for seed in both], axis=0)
    change = change[np.isfinite(change)]
    sides = min(np.count_nonzero(change <= 0), np.count_nonzero(change >= 0))
    return {
        "difference": difference,
        "interval": interval(change, difference, (-np.inf, np.inf)),
        "p": min(1.0, 2 * (int(sides) + 1) / (len(change) + 1)),
        "compared_seeds": len(both),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the arena as a Markdown table, best arm first."""
    metric, base = result["metric"], result["compared_with"]
    lines = [
        f"| arm | {metric} ({result['split']}) | minus {base} [95%] | p | train s | steps | peak GB | ms alone | "
        "read |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, row in sorted(result["arms"].items(), key=lambda item: -item[1]["mean"]):
        spread = f" ± {row['std']:.3f}" if row["std"] is not None else ""
        low, high = row.get("interval") or (None, None)
        change = f"{row['difference']:+.3f}" if "difference" in row else ""
        change += f" [{low:+.3f}, {high:+.3f}]" if low is not None else ""
        cells = [arm, f"{row['mean']:.3f}{spread}", change, f"{row['p']:.3f}" if "p" in row else ""]
        for name, form in (
            ("train_seconds", ".0f"),
            ("steps", ".0f"),
            ("peak_memory_gb", ".2f"),
            ("latency_ms", ".1f"),
        ):
            cells.append("" if row[name] is None else format(row[name], form))
        cells.append(f"{row['coverage']:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{arm}: {sentence}" for arm, sentence in result["failed"].items()]
    return "\n".join(lines) + "\n"


def _plot(path: Path, result: Mapping[str, Any]) -> None:
    """Draw a line for every arm, the best one on top: names never lie on each other, as they do beside dots."""
    from tinyhat.report import plots

    if not plots.available():
        return
    from matplotlib.figure import Figure

    rows = sorted(result["arms"].items(), key=lambda item: item[1]["mean"])
    base = result["arms"][result["compared_with"]]["mean"]
    figure = Figure(figsize=(7.4, 1.2 + 0.32 * len(rows)), layout="constrained")
    axis = figure.add_subplot()
    axis.axvline(base, color="#bbb", linewidth=0.8)
    for height, (_, row) in enumerate(rows):
        if row.get("interval"):
            axis.plot([base + end for end in row["interval"]], [height, height], color="#7fa3d1", linewidth=2)
        axis.plot([row["mean"]], [height], "o", color="#1f4f9c", markersize=5)
        alone = "" if row["latency_ms"] is None else f", {row['latency_ms']:.3g} ms"
        axis.annotate(
            f"read {row['coverage']:.0%}{alone}", (1, height), xycoords=("axes fraction", "data"),
            textcoords="offset points", xytext=(6, 0), va="center", fontsize=8, color="#666",
        )  # fmt: skip
    axis.set_yticks(range(len(rows)), [arm for arm, _ in rows])
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(
        f"{result['metric'].replace('_', ' ')} ({result['split']}); bars: 95% interval of the difference to "
        f"{result['compared_with']}; right: milliseconds for a document alone",
        fontsize=8,
    )
    figure.savefig(path, format="svg", metadata={"Date": None})
