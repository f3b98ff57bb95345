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
from tinyhat.evaluate.metrics import score_statistic
from tinyhat.evaluate.scores import read_scores
from tinyhat.run import Run, read_json, write_bytes, write_json
from tinyhat.tune.decided import decide
from tinyhat.tune.rule import cross_fitted

METRIC = {"multi": "micro_f1", "single": "accuracy", "regression": "pearson"}
FIGURES = ("train_seconds", "steps", "peak_memory_gb", "latency_ms", "documents_per_second", "coverage")


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
    samples: dict[str, list[tuple[float, np.ndarray]]] = {}
    failed: dict[str, str] = {}
    metric = split = ""
    for arm in arms:
        folders = [out / "arms" / arm / f"seed_{s}" for s in range(seeds)]
        done = [folder for folder in folders if (folder / "arm.json").exists()]
        for folder in folders:
            if folder.with_suffix(".failed.json").exists():
                failed[arm] = read_json(folder.with_suffix(".failed.json"))["error"]
        if not done:
            failed.setdefault(arm, "did not finish: see its log")
            continue
        samples[arm] = [resampled(folder, resamples) for folder in done]
        measured = [read_json(folder / "metrics.json") for folder in done]
        metric, split = METRIC[measured[0]["task"]], measured[0]["split"]
        values = np.array([value for value, _ in samples[arm]])
        figures = [read_json(folder / "arm.json") for folder in done]
        row: dict[str, Any] = {"seeds": len(done), "metric": metric, "mean": float(values.mean())}
        row["std"] = float(values.std(ddof=1)) if len(values) > 1 else None
        for name in FIGURES:
            numbers = [figure[name] for figure in figures if figure[name] is not None]
            row[name] = float(np.mean(numbers)) if numbers else None
        found[arm] = row | {"documents": figures[0]["documents"]}
    if not found:
        raise UserError(f"no arm of {out} is complete: {next(iter(failed.values()))}")
    base = next((arm for arm in found if arm != "linear"), next(iter(found)))
    for arm, row in found.items():
        if arm != base:
            row |= _against(samples[base], samples[arm])
    result = {"settings": dict(settings), "split": split, "metric": metric, "compared_with": base}
    result |= {"arms": found, "failed": failed}
    write_json(out / "arena.json", result)
    write_bytes(out / "arena.md", table(result).encode())
    _plot(out / "arena.svg", result)
    return result


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
    statistic, name = score_statistic(scores, decided), METRIC[decision.task]
    whole = statistic(np.ones((1, len(scores.ids)), np.float32))[name][0]
    return float(whole), bootstrap(statistic, len(scores.ids), resamples, 0)[name]


def _against(base: list[tuple[float, np.ndarray]], other: list[tuple[float, np.ndarray]]) -> dict[str, Any]:
    """Return the mean difference over the seeds both have, its 95% interval over documents, and a two-sided p."""
    pairs = list(zip(base, other, strict=False))
    difference = float(np.mean([b[0] - a[0] for a, b in pairs]))
    change = np.mean([b[1] - a[1] for a, b in pairs], axis=0)
    change = change[np.isfinite(change)]
    sides = min(np.count_nonzero(change <= 0), np.count_nonzero(change >= 0))
    return {
        "difference": difference,
        "interval": interval(change, difference, (-np.inf, np.inf)),
        "p": min(1.0, 2 * (int(sides) + 1) / (len(change) + 1)),
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
        low, high = row.get("interval") or (float("nan"), float("nan"))
        change = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]" if "difference" in row else ""
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
    from tinyhat.report import plots

    if not plots.available():
        return
    from matplotlib.figure import Figure

    arms = result["arms"]
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axis = figure.add_subplot()
    for arm, row in arms.items():
        axis.errorbar([row["latency_ms"]], [row["mean"]], yerr=[row["std"] or 0.0], fmt="o", markersize=4)
        axis.annotate(arm, (row["latency_ms"], row["mean"]), textcoords="offset points", xytext=(5, 3), fontsize=7)
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds per document, predicted alone")
    axis.set_ylabel(f"{result['metric'].replace('_', ' ')} ({result['split']})")
    figure.savefig(path, format="svg", metadata={"Date": None})
