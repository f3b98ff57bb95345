"""`tinyhat evaluate RUN`: measure saved scores, or other labelled documents."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    run: o.RunPath,
    data: Annotated[str | None, typer.Option("--data", help="Other labelled documents to measure on.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="dev or test; test where there is one.")] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="Numeric plan for --data; the tuned one.")] = None,
    text: o.Text = None,
    pair: o.Pair = None,
    label: o.Label = None,
    labels: o.Labels = None,
    target: o.Target = None,
    id: o.Id = None,
    assignments: o.Set = None,
    as_json: o.Json = False,
) -> None:
    """Print every metric of a split, with 95% intervals."""
    from tinyhat.cli.show import metrics_table
    from tinyhat.verbs import evaluate

    metrics = evaluate(run, data, split, plan, assignments or [], o.columns_of(context), o.say)
    if as_json:
        typer.echo(json.dumps(metrics, ensure_ascii=False))
    else:
        metrics_table(metrics)
