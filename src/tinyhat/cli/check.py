"""`tinyhat check DATA`: what is in the data, and what is wrong with it, before anything is trained."""

from __future__ import annotations

import json

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    data: o.Data,
    task: o.Task = "auto",
    text: o.Text = None,
    pair: o.Pair = None,
    label: o.Label = None,
    labels: o.Labels = None,
    target: o.Target = None,
    id: o.Id = None,
    label_list: o.LabelList = None,
    group: o.Group = None,
    weight: o.Weight = None,
    source: o.Source = None,
    limit: o.Limit = None,
    model: str = typer.Option("minilm", "--model", help="Whose tokens lengths are counted in; 'linear' counts words."),
    max_tokens: int = typer.Option(512, "--max-tokens", min=8, help="Longer documents are reported as cut."),
    seed: o.Seed = 0,
    assignments: o.Set = None,
    as_json: o.Json = False,
) -> None:
    """Count labels and lengths, find duplicates, leakage, conflicts and unseen labels."""
    rest = {"encoder.model": model, "reading.max_tokens": max_tokens, "train.seed": seed}
    config = o.config_from(data, o.columns_of(context), rest, None, assignments)
    from tinyhat.data.check import render_check
    from tinyhat.verbs import check_config

    result = check_config(config)
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else render_check(result))
