"""`tinyhat experiment report RESULTS`: one self-contained page and a Markdown table of a grid of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyhat.errors import UserError
from tinyhat.report import experiment_plots, plots
from tinyhat.report.experiment import (
    BASE,
    QUALITY,
    Difference,
    Runs,
    Spread,
    by_row,
    compare_ranks,
    emulated,
    main_row,
    padding_tax,
    paired,
    read_runs,
    reasons,
    seeds_of,
    settings_apart,
    spread,
    stability,
    value_of,
    with_drift,
)
from tinyhat.run import write_bytes

COLUMNS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "classification": (
        ("micro_f1", "micro-F1 at 0.5", 4), ("macro_f1", "macro-F1 at 0.5", 4), ("tuned_micro_f1", "micro-F1 tuned", 4),
        ("tuned_macro_f1", "macro-F1 tuned", 4), ("precision_at_1", "P@1", 4), ("precision_at_3", "P@3", 4),
        ("precision_at_5", "P@5", 4),
    ),
    "language_modeling": (("validation_loss", "validation loss", 4),),
}  # fmt: skip
COMMON = (
    ("last_loss", "last loss", 4), ("logit_drift", "logit drift", 5), ("largest_gap_to_fp32", "gap to fp32 weights", 4),
    ("unchanged_share", "unchanged as stored", 4), ("largest_gradient_norm", "largest gradient norm", 2),
    ("largest_logit", "largest logit", 2), ("skipped_steps", "skipped", 0), ("samples_per_second", "documents/s", 2),
    ("tokens_per_second", "tokens/s", 0), ("peak_memory_gb", "peak GB", 2), ("mfu", "MFU", 4),
)  # fmt: skip
EMULATED = "Products emulated on this processor (fp32 products rounded to fp16: fp16's numbers, no speed, no MFU):"


def build_experiment_report(folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into RESULTS; return both paths.

    Raises:
        UserError: there are no runs.
    """
    runs = with_drift(read_runs(folder), folder)
    if not runs:
        raise UserError(f"{folder} holds no runs.jsonl: give the --out of an experiment")
    rows, apart = by_row(runs), settings_apart(runs)
    page: dict[str, Any] = {
        "tables": [_table(row, plans, apart) for row, plans in rows.items()],
        "reasons": reasons(runs),
        "tax": [
            (_title(t.row, apart), t.plan, t.seeds, f"{t.padded:.2f}", f"{t.packed:.2f}", f"{t.packed / t.padded:.2f}")
            for t in padding_tax(runs)
        ],
        "emulated": ", ".join(emulated(runs)),
        "emulated_means": EMULATED,
        "ranks": _ranks(rows),
        "plots": _plots(rows, folder) if plots.available() else [],
        "facts": _facts(runs),
    }
    markdown = folder / "report.md"
    write_bytes(markdown, _markdown(page).encode())
    html = folder / "report.html"
    write_bytes(html, _render(page).encode("utf-8", "replace"))
    return html, markdown


def _title(row: tuple[str, ...], apart: Mapping[str, str]) -> str:
    """Return a row in words; of its settings those that set it apart."""
    return " · ".join(word for word in (apart.get(x, x.replace("_", " ")) for x in row) if word)


def _table(row: tuple[str, ...], plans: Mapping[str, Runs], apart: Mapping[str, str]) -> dict[str, Any]:
    """Return one row's table: a line per plan that ran, differences of the quality to fp32, and stability.

    Means are of the seeds that finished; of all where none did. How many did is in the line.
    """
    task = row[0]
    quality = QUALITY.get(task, "last_loss")
    base = seeds_of(plans.get(BASE, []), quality)
    columns = [
        c
        for c in (*COLUMNS.get(task, ()), *COMMON)
        if any(value_of(r, c[0]) is not None for rs in plans.values() for r in rs)
    ]
    lines = []
    for plan, runs in plans.items():
        ran = [r for r in runs if r["status"] != "cannot run"]
        if not ran:
            continue
        done = [r for r in ran if r["status"] == "done"]
        cells = [show(spread(list(seeds_of(done or ran, name).values())), digits) for name, _, digits in columns]
        difference = None if plan == BASE else paired(seeds_of(ran, quality), base)
        lines.append(
            {
                "plan": plan,
                "seeds": str(len(done)) if len(done) == len(ran) else f"{len(done)} of {len(ran)}",
                "cells": cells,
                "difference": show_difference(difference),
                "coloured": difference is not None and difference.clear,
            }
        )
    states = stability({p: r for p, r in plans.items() if any(x["status"] != "cannot run" for x in r)})
    seeds = sorted({s for found in states.values() for s in found})
    return {
        "title": _title(row, apart),
        "quality": {c[0]: c[1] for c in columns}.get(quality, quality),
        "columns": [title for _, title, _ in columns],
        "lines": lines,
        "seeds": seeds,
        "stability": [(plan, [found.get(s, "") for s in seeds]) for plan, found in states.items()],
    }


def show(found: Spread | None, digits: int) -> str:
    """Return mean and deviation as text."""
    if found is None:
        return "–"
    mean = f"{found.mean:,.{digits}f}"
    return mean if found.deviation is None or digits == 0 else f"{mean} ± {found.deviation:.{digits}f}"


def show_difference(found: Difference | None) -> str:
    """Return a paired difference with its interval as text."""
    if found is None:
        return "–"
    if found.interval is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} ({found.interval[0]:+.4f} to {found.interval[1]:+.4f})"


def _ranks(rows: Mapping[tuple[str, ...], Mapping[str, Runs]]) -> dict[str, Any] | None:
    first, second = (main_row(rows, task) for task in QUALITY)
    if first is None or second is None:
        return None
    found = compare_ranks(rows[first], rows[second], (QUALITY[first[0]], QUALITY[second[0]]))
    if found is None:
        return None
    lines = [
        (plan, f"{a:g}", f"{b:g}", f"{abs(a - b):g}", "{} and {}".format(*found.seeds[plan]))
        for plan, (a, b) in found.ranks.items()
    ]
    return {"rho": f"{found.rho:.2f}", "p": f"{found.p:.3f}", "count": len(lines), "lines": lines}


def _plots(rows: Mapping[tuple[str, ...], Mapping[str, Runs]], folder: Path) -> list[tuple[str, str]]:
    """Return (title, SVG) of every plot: the frontier, gradient norms and largest logits of each task's grid."""
    drawn = []
    for task in QUALITY:
        row = main_row(rows, task)
        if row is None:
            continue
        plans = rows[row]
        quality = QUALITY[task]
        points = {}
        for plan, runs in plans.items():
            done = [r for r in runs if r["status"] == "done"]
            speed, value = (spread(list(seeds_of(done, n).values())) for n in ("samples_per_second", quality))
            if speed is not None and value is not None:
                points[plan] = (speed.mean, value.mean, value.deviation or 0.0)
        title = task.replace("_", " ")
        drawn.append(
            (
                f"{title}: speed against quality",
                experiment_plots.frontier(f"{task}-frontier", quality, points, "loss" in quality),
            )
        )
        for name, label in (("gradient_norm", "gradient norm"), ("largest_logit", "largest logit"), ("loss", "loss")):
            curves = {plan: _curve(folder, runs, name) for plan, runs in plans.items()}
            curves = {plan: curve for plan, curve in curves.items() if curve[0]}
            drawn.append((f"{title}: {label}, first seed", experiment_plots.curves(f"{task}-{name}", label, curves)))
    return drawn


def _curve(folder: Path, runs: Runs, name: str) -> tuple[list[float], list[float]]:
    path = folder / "steps" / f"{runs[0]['key']}.jsonl"
    lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    kept = [(float(x["step"]), float(x[name])) for x in lines if x.get(name) is not None]
    return [s for s, _ in kept], [v for _, v in kept]


def _facts(runs: Runs) -> list[str]:
    """Return what the runs have in common: machine, versions, commands."""
    found = []
    machines = sorted(
        {f"{r['environment']['processor']}, {r['environment']['cores']} cores, {r['threads']} threads" for r in runs}
    )
    peaks = sorted(
        {f"{r['peak_flops'] / 1e12:.2f} TFLOP/s ({r['peak_flops_from']})" for r in runs if r.get("peak_flops")}
    )
    versions = sorted(
        {
            ", ".join(f"{k} {v}" for k, v in r["environment"]["packages"].items() if k in ("torch", "transformers"))
            for r in runs
        }
    )
    commands = list(dict.fromkeys(" ".join(r["environment"]["command"]) for r in runs))
    found += [f"machine: {x}" for x in machines] + [f"peak: {x}" for x in peaks] + versions
    return found + [f"command: {x}" for x in commands]


def _markdown(page: Mapping[str, Any]) -> str:
    parts = ["# Numeric plans\n"]
    for table in page["tables"]:
        head = ["plan", "seeds", f"{table['quality']} minus fp32 (95%)", *table["columns"]]
        parts.append(f"## {table['title']}\n")
        parts.append("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        parts += [
            "| " + " | ".join([x["plan"], x["seeds"], x["difference"], *x["cells"]]) + " |" for x in table["lines"]
        ]
        parts.append("")
        parts.append(
            "| stability | "
            + " | ".join(f"seed {s}" for s in table["seeds"])
            + " |\n|"
            + "---|" * (len(table["seeds"]) + 1)
        )
        parts += ["| " + " | ".join([plan, *words]) + " |" for plan, words in table["stability"]]
        parts.append("")
    if page["tax"]:
        parts.append("## Padding tax\n\n| row | plan | seeds | documents/s padded | packed | packed / padded |")
        parts.append("|---|---|---|---|---|---|")
        parts += ["| " + " | ".join(map(str, line)) + " |" for line in page["tax"]]
        parts.append("")
    if page["ranks"]:
        ranks = page["ranks"]
        parts.append(
            f"## Ranks of the two tasks\n\nSpearman's rho {ranks['rho']} (p {ranks['p']}, {ranks['count']} plans).\n"
        )
        parts.append("| plan | classification | language modeling | apart | seeds |\n|---|---|---|---|---|")
        parts += ["| " + " | ".join(line) + " |" for line in ranks["lines"]]
        parts.append("")
    if page["emulated"]:
        parts.append(f"{EMULATED} {page['emulated']}.\n")
    if page["reasons"]:
        parts.append("## Could not run here\n")
        parts += [f"* {plan}: {reason}" for plan, reason in page["reasons"].items()]
        parts.append("")
    parts.append("## Made with\n")
    parts += [f"* {fact}" for fact in page["facts"]]
    return "\n".join(parts) + "\n"


def _render(page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("tinyhat.report", "."), autoescape=True, trim_blocks=True)
    return environment.get_template("experiment.html").render(page).lstrip()
