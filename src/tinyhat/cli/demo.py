"""`tinyhat demo`: the main job, offline, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyhat.cli.options as o


def command(
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run folder.")] = Path("runs/demo"),
) -> None:
    """Train minilm on the docstrings of the installed libraries, beside the baseline, and predict three documents."""
    import json

    from tinyhat.cli.show import metrics_table
    from tinyhat.demo import demo
    from tinyhat.run import read_json

    run, predicted = demo(out, o.say)
    metrics_table(read_json(run.metrics))
    for text, result in predicted:
        o.say(f"\n{text[:200].strip()} ...")
        typer.echo(json.dumps(result, ensure_ascii=False))
    o.say(f"\nreport: {run.report}\nyour own documents: tinyhat train my.csv --out runs/mine")
