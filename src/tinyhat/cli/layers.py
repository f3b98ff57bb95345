"""`tinyhat layers MODEL DATA --out FOLDER`: which layer and pooling know most about labelled documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="minilm, a run, a folder or a hub name.")],
    data: o.Data,
    out: Annotated[Path, typer.Option("--out", help="New folder; 'embed --layers best:FOLDER' reads the choice.")],
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=8, help="Longer texts are read in windows.")
    ] = None,
    task: o.Task = "auto",
    text: o.Text = None,
    label: o.Label = None,
    labels: o.Labels = None,
    target: o.Target = None,
    id: o.Id = None,
    label_list: o.LabelList = None,
    group: o.Group = None,
    source: o.Source = None,
    limit: o.Limit = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Probe every layer and pooling on labelled data and write down the best choice."""
    config = o.config_from(data, o.columns_of(context), {"train.seed": seed}, None, None)
    from tinyhat.embed.layers import layers_config

    table = layers_config(model, config, out, max_tokens, o.say if as_json else typer.echo)
    if as_json:
        typer.echo(json.dumps(table.best.choice() | table.facts(), ensure_ascii=False))
