"""`tinyhat tune RUN`: fit the decision rule again, without touching weights."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    run: o.RunPath,
    data: Annotated[str | None, typer.Option("--data", help="Other labelled documents to tune on.")] = None,
    split: Annotated[str, typer.Option("--split", help="Which split to tune on.")] = "dev",
    rule: Annotated[
        Literal["auto", "thresholds", "global", "top_k", "top-k", "argmax"] | None,
        typer.Option("--rule", help="How scores become labels."),
    ] = None,
    text: o.Text = None,
    pair: o.Pair = None,
    label: o.Label = None,
    labels: o.Labels = None,
    target: o.Target = None,
    id: o.Id = None,
    assignments: o.Set = None,
) -> None:
    """Fit thresholds on saved dev scores (or on --data) and write them into the model folder."""
    from tinyhat.cli.show import metrics_table
    from tinyhat.verbs import tune

    chosen = None if rule is None else rule.replace("-", "_")
    metrics_table(tune(run, data, split, chosen, assignments or [], o.columns_of(context), o.say))
