"""The result of a check as tables for people."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 110
COMMONEST = 5


def render_check(result: dict[str, Any]) -> str:
    """Return the result of `check_dataset` as plain text tables, with the problems found in sentences below."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(_splits_table(result))
    labels = result["labels"]
    if labels:
        bands = labels["bands"]
        console.print(
            f"labels: {labels['count']:,}{' (declared)' if labels['declared'] else ''}; {bands['frequent']:,} with "
            f"{labels['frequent_from']} or more training documents, {bands['few']:,} with fewer, "
            f"{bands['zero']:,} with none",
            soft_wrap=True,
        )
        commonest = list(labels["counts"].items())[:COMMONEST]
        console.print("commonest: " + ", ".join(f"{name} ({count:,})" for name, count in commonest), soft_wrap=True)
    for sentence in [*result["notes"], *_problems(result)]:
        console.print(f"- {sentence}", soft_wrap=True)
    return stream.getvalue().rstrip()


def _splits_table(result: dict[str, Any]) -> Table:
    table = Table("", title=f"{result['name']}: {result['task']}", title_justify="left")
    splits = result["splits"]
    for name in splits:
        table.add_column(name, justify="right")

    def row(title: str, cell: Any) -> None:
        table.add_row(title, *(cell(facts) for facts in splits.values()))

    row("documents", lambda f: f"{f['documents']:,}")
    if result["labels"]:
        row("labels per document, mean (max)", lambda f: _mean_max(f["labels_per_document"]))
        row("documents without a label", lambda f: f"{f['labels_per_document']['none']:,}")
        row("answers frequent / few / zero", lambda f: " / ".join(f"{n:,}" for n in f["bands"].values()))
    else:
        for target in next(iter(splits.values()))["targets"]:
            row(
                f"{target}, mean (std)",
                lambda f, t=target: f"{f['targets'][t]['mean']:.3g} ({f['targets'][t]['std']:.3g})",
            )
    unit = next(iter(splits.values()))["length"]["unit"]
    row(f"{unit}, median (mean)", lambda f: f"{f['length']['p50']:,.0f} ({f['length']['mean']:,.0f})")
    row(f"{unit}, 90% / 99% / max", lambda f: " / ".join(f"{f['length'][k]:,.0f}" for k in ("p90", "p99", "max")))
    if unit == "tokens":
        limit = next(iter(splits.values()))["cut"]["max_tokens"]
        row(f"cut at {limit} tokens", lambda f: f"{f['cut']['documents']:,} ({f['cut']['share']:.1%})")
    row("without a letter or digit", lambda f: f"{f['empty']:,}")
    row("exact / near duplicates", lambda f: f"{f['exact_duplicates']:,} / {f['near_duplicates']:,}")
    return table


def _mean_max(spread: dict[str, float]) -> str:
    return f"{spread['mean']:.2f} ({spread['max']:.0f})"


def _problems(result: dict[str, Any]) -> list[str]:
    found = []
    for pair, facts in result["leakage"].items():
        one, other = pair.split("-")
        if facts["near"] or facts["exact"]:
            shown = ", ".join(f"{a} and {b}" for a, b in facts["examples"])
            found.append(
                f"leakage: documents of {other} that are in {one}: {facts['exact']:,} exactly, {facts['near']:,} "
                f"exactly or nearly ({shown})"
            )
    for name, facts in result["splits"].items():
        unseen = facts.get("unseen", {"labels": 0})
        if unseen["labels"] and name != "train":
            found.append(
                f"{name}: labels without a training document: {unseen['labels']:,} ({unseen['answers']:,} answers)"
            )
    conflicts = result["conflicts"]
    if conflicts["documents"]:
        shown = ", ".join(f"{a[0]} {a[1]} and {b[0]} {b[1]}" for a, b in conflicts["examples"])
        found.append(
            f"conflicts: documents with the text of another and a different answer: {conflicts['documents']:,} "
            f"({shown})"
        )
    return found
