"""`tinyhat experiment report RESULTS`: what a grid of runs says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyhat.cli.options as o

app = typer.Typer(no_args_is_help=True, help="Read what the scripts in experiments/ wrote.")


@app.callback()
def _verbs() -> None:
    pass


@app.command("report")
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="The --out of an experiment.")],
) -> None:
    """Write report.html and report.md into RESULTS: means, paired differences, stability, frontier, ranks."""
    from tinyhat.report.experiment_page import build_experiment_report

    html, markdown = build_experiment_report(results)
    o.say(f"report: {html}\ntable: {markdown}")
