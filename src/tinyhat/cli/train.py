"""`tinyhat train DATA --out RUN`: documents in, a decided, measured, saved classifier out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import tinyhat.cli.options as o
from tinyhat.errors import UserError

Vote = Literal["mean", "mean_probability", "max", "top_k", "majority", "attention", "transformer"]


def command(
    context: typer.Context,
    data: o.Data,
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="The run folder: new or empty.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Hub name, local path, minilm or linear.")] = None,
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
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Tokens read per document (512).")] = None,
    truncation: Annotated[
        Literal["head", "tail", "head_tail", "middle", "random", "tfidf", "textrank"] | None,
        typer.Option("--truncation", help="What is read (head)."),
    ] = None,
    windows: Annotated[
        bool, typer.Option("--windows", help="Read long documents whole, in windows that vote.")
    ] = False,
    vote: Annotated[Vote | None, typer.Option("--vote", help="How windows become one answer (mean).")] = None,
    stride: Annotated[int | None, typer.Option("--stride", help="Tokens between the starts of windows.")] = None,
    extend_positions: Annotated[
        int | None, typer.Option("--extend-positions", help="Tile a model's learned positions to so many tokens.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Times every document is read (3).")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Optimiser steps instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Documents per step (32).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Of the body; derived from its width.")
    ] = None,
    recipe: o.Recipe = None,
    assignments: o.Set = None,
    source: o.Source = None,
    limit: o.Limit = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random (0).")] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Fit the linear baseline beside the encoder.")
    ] = None,
    forgetting: Annotated[
        Path | None, typer.Option("--forgetting", metavar="TEXT", help="Measure on TEXT what training unlearns.")
    ] = None,
    find_rate: Annotated[bool, typer.Option("--find-rate", help="Try rising rates and suggest one.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this run after an interruption.")] = False,
) -> None:
    """Train, tune, evaluate and report."""
    if epochs is not None and max_steps is not None:
        raise UserError("--epochs and --max-steps exclude each other: give one of them")
    if windows and truncation:
        raise UserError("--windows and --truncation exclude each other: documents are read whole, or cut")
    rest = {
        "encoder.model": model,
        "reading.max_tokens": max_tokens or extend_positions,
        "reading.strategy": "windows" if windows else truncation,
        "reading.vote": vote,
        "reading.stride": stride,
        "encoder.extend_positions": extend_positions,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.batch_size": batch_size,
        "train.learning_rate": learning_rate,
        "train.seed": seed,
        "train.forgetting": forgetting,
        "evaluate.baseline": baseline,
    }
    config = o.config_from(data, o.columns_of(context), rest, recipe, assignments)
    if find_rate:
        from tinyhat.cli.rates import rate_table
        from tinyhat.verbs import find_rate_config

        print(rate_table(find_rate_config(config, o.say)))
        return
    if out is None:
        raise UserError("tinyhat train needs --out RUN, a new or empty folder for what it writes")
    from tinyhat.cli.show import metrics_table
    from tinyhat.pipeline import train
    from tinyhat.run import read_json
    from tinyhat.train.ranks import is_first

    run = train(config, out, resume, o.say)
    if not is_first():
        return
    metrics_table(read_json(run.metrics))
    o.say(f"report: {run.report}")
