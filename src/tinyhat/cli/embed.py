"""`tinyhat embed MODEL INPUT --to FILE`: a vector for every document, or word, in files that last."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a folder, a hub name, or minilm.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="csv, tsv, jsonl, parquet or txt.")],
    to: Annotated[list[Path], typer.Option("--to", help=".npy, .h5, .parquet, .safetensors or .faiss; repeatable.")],
    text: o.Text = None,
    id: o.Id = None,
    layers: Annotated[
        str, typer.Option("--layers", help="last, first, middle, all, pooled, a number, -4:, best or best:FOLDER.")
    ] = "last",
    combine: Annotated[
        Literal["mean", "concat"], typer.Option("--combine", help="What several layers become.")
    ] = "mean",
    pooling: Annotated[
        str | None, typer.Option("--pooling", help="mean, max, cls, last, mean_sqrt, weighted; words: first too.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=8, help="Tokens of a sequence; 512.")] = None,
    long: Annotated[
        Literal["windows", "truncate"] | None,
        typer.Option("--long", help="Longer documents; pooled: as the run reads."),
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="One vector a word.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="Stored as float32, float16, int8 or binary.")] = "float32",
    normalize: Annotated[bool, typer.Option("--normalize", help="Vectors of length 1.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="The same bits whatever is embedded beside.")] = False,
    plan: Annotated[str, typer.Option("--plan", help="Numeric plan: auto, fp32 or amp_bf16.")] = "auto",
    budget: Annotated[int | None, typer.Option("--budget", min=1, help="Tokens of a forward pass.")] = None,
    shards: Annotated[int, typer.Option("--shards", min=1, help="Cut the store into N files.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete part.")] = False,
    engine: Annotated[Literal["ray"] | None, typer.Option("--engine", help="Share the work on a Ray cluster.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Ray actors.")] = 2,
) -> None:
    """Write a vector for every document, or word."""
    from tinyhat.scale.embed import embed

    embed(
        model, source, list(to), columns=o.columns_of(context), layers=layers, combine=combine, pooling=pooling,
        max_tokens=max_tokens, long=long, words=words, dtype=dtype, normalize=normalize, exact=exact, plan=plan,
        budget=budget, shards=shards, resume=resume, engine=engine, workers=workers, say=o.say,
    )  # fmt: skip
