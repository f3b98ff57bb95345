"""`tinyhat arena DATA --out ARENA`: ways of reading long documents, compared on one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    data: o.Data,
    out: Annotated[Path, typer.Option("--out", metavar="ARENA", help="The arena folder: new, or to go on with.")],
    arms: Annotated[str | None, typer.Option("--arms", help="Comma-separated names; 'all' for every one.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of every arm.")] = 3,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Budget of a training, in tokens.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Budget of a training, by the clock.")] = None,
    min_tokens: Annotated[int, typer.Option("--min-tokens", min=0, help="Only documents at least so long.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Arms trained at the same time.")] = 1,
    model: Annotated[str | None, typer.Option("--model", help="Hub name, local path or minilm.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Tokens per sequence (512).")] = None,
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
    """Compare truncation and windows on the same documents, seeds and budget."""
    rest = {"encoder.model": model, "reading.max_tokens": max_tokens}
    config = o.config_from(data, o.columns_of(context), rest, recipe, assignments)
    from tinyhat.arena import ARMS, DEFAULT, Budget, arena_config
    from tinyhat.arena_table import table

    chosen = list(ARMS) if arms == "all" else arms.split(",") if arms else list(DEFAULT)
    budget = Budget(tokens, None if minutes is None else 60 * minutes)
    found = arena_config(config, out, chosen, seeds, budget, min_tokens, jobs, o.say)
    if json_:
        import json

        print(json.dumps(found))
    else:
        print(table(found), end="")
