"""`tinyhat export MODEL --to FORM --out FOLDER`: a model in another library's form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import tinyhat.cli.options as o


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="minilm, a run, a folder or a hub name.")],
    to: Annotated[Literal["sentence-transformers"], typer.Option("--to", help="The form.")],
    out: Annotated[Path, typer.Option("--out", help="New folder; appears when complete and checked.")],
    layers: Annotated[
        str, typer.Option("--layers", help="last, a number, or best:FOLDER of 'tinyhat layers'.")
    ] = "last",
    pooling: Annotated[
        Literal["mean", "max", "cls", "last", "mean_sqrt", "weighted"] | None,
        typer.Option("--pooling", help="What a document's tokens become; mean, or the one best chose."),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Vectors of length 1.")] = False,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=8, help="Longer documents are cut.")] = None,
) -> None:
    """Export a model, refused unless it gives the same numbers there."""
    from tinyhat.compress.export import export

    export(model, out, to, layers, pooling, normalize, max_tokens, o.say)
