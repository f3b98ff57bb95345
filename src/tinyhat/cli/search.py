"""`tinyhat search INDEX "query"`: the nearest documents of what `tinyhat embed` wrote, as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyhat.cli.options as o


def command(
    context: typer.Context,
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A store by the name 'embed --to' gave it.")],
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="One text; or a file with --input.")] = None,
    source: Annotated[
        str | None, typer.Option("--input", metavar="FILE", help="Texts: csv, jsonl, txt and so on; -.")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many documents a query gets.")] = 10,
    model: Annotated[str | None, typer.Option("--model", help="Where the encoder lies now, if it has moved.")] = None,
    text: o.Text = None,
    id: o.Id = None,
) -> None:
    """Find the nearest documents; one JSON line a query."""
    from tinyhat.embed.search import search_lines

    for line in search_lines(index, query, source, k, model, o.columns_of(context)):
        typer.echo(line)
