"""`tinyhat predict RUN INPUT`: one JSON line a document, streamed, in input order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    run: o.RunPath,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="csv, tsv, jsonl, parquet, txt; - reads JSON lines.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write here, not to stdout; appears when complete.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Scores of the k best labels.")] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="Numeric plan, for example fp32; the tuned one.")] = None,
    text: o.Text = None,
    pair: o.Pair = None,
    id: o.Id = None,
    engine: Annotated[Literal["ray"] | None, typer.Option("--engine", help="Share the work on a Ray cluster.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Ray actors.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 when a row is bad.")] = False,
) -> None:
    """Predict the labels of every document."""
    from tinyhat.verbs import predict

    bad = predict(run, source, out, top_k, plan, o.columns_of(context), o.say, engine, workers)
    if bad and strict:
        raise typer.Exit(2)
