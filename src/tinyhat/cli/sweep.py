"""`tinyhat sweep DATA --trials N --out SWEEP`: the best of N trainings over config paths, as a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    data: o.Data,
    out: Annotated[
        Path, typer.Option("--out", metavar="SWEEP", help="The sweep folder: new, empty, or to go on with.")
    ],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trainings in the end.")] = 20,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="a.b=RANGE", help="low..high, low..high:log or a,b,c; repeat for several."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Hub name, local path or minilm.")] = None,
    task: o.Task = "auto",
    text: o.Text = None,
    pair: o.Pair = None,
    label: o.Label = None,
    labels: o.Labels = None,
    target: o.Target = None,
    label_list: o.LabelList = None,
    recipe: o.Recipe = None,
    assignments: o.Set = None,
    source: o.Source = None,
    limit: o.Limit = None,
    json_: o.Json = False,
) -> None:
    """Search learning rate, head rate and layer decay, or what --over names, and write the best as a recipe."""
    config = o.config_from(data, o.columns_of(context), {"encoder.model": model}, recipe, assignments)
    from tinyhat.sweep import sweep_config

    found = sweep_config(config, out, trials, over or [], o.say)
    if json_:
        import json

        print(json.dumps(found))
        return
    for row in sorted(found["trials"], key=lambda row: -(row["value"] or float("-inf"))):
        value = "        -" if row["value"] is None else f"{row['value']:9.4f}"
        parameters = ", ".join(
            f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row["parameters"].items()
        )
        print(f"{row['trial']:4}{value}  {row['state']:9} {parameters}")
