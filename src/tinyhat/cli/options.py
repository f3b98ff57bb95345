"""Flags that several verbs share, and how flags become a Config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinyhat.errors import UserError

if TYPE_CHECKING:
    from tinyhat.config import Config

TaskName = Literal["auto", "single", "multi", "regression"]

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="File, folder, corpus (eurlex57k, pydocs) or hub:owner/name[:config].")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that 'tinyhat train --out' wrote.")]
Text = Annotated[list[str] | None, typer.Option("--text", help="Text column; repeat to join several.")]
Pair = Annotated[tuple[str, str] | None, typer.Option("--pair", metavar="A B", help="Two text columns, as a pair.")]
Task = Annotated[TaskName, typer.Option("--task", help="What a document gets.")]
Label = Annotated[str | None, typer.Option("--label", help="Column with one label.")]
Labels = Annotated[str | None, typer.Option("--labels", help="Column with a list of labels.")]
Target = Annotated[list[str] | None, typer.Option("--target", help="Numeric column to predict; repeat for several.")]
Id = Annotated[str | None, typer.Option("--id", help="Column that names a document.")]
LabelList = Annotated[Path | None, typer.Option("--label-list", metavar="FILE", help="The label space, one a line.")]
Group = Annotated[str | None, typer.Option("--group", metavar="COL", help="Equal values never part in a split.")]
Weight = Annotated[str | None, typer.Option("--weight", metavar="COL", help="Column with document weights.")]
Source = Annotated[str | None, typer.Option("--source", metavar="PATH", help="Where a known corpus lies.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most N documents of each split.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]
Recipe = Annotated[str | None, typer.Option("--recipe", metavar="FILE", help="YAML with configuration sections.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Set any configuration key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


COLUMNS = (
    "task", "text", "pair", "label", "labels", "target", "id", "label_list", "group", "weight", "source", "limit",
)  # fmt: skip


def columns_of(context: typer.Context) -> dict[str, Any]:
    """Return the flags of a verb that are keys of the data section."""
    return {name: context.params[name] for name in COLUMNS if name in context.params}


def config_from(
    data: str | None,
    columns: Mapping[str, Any],
    rest: Mapping[str, Any],
    recipe: str | None,
    assignments: list[str] | None,
) -> Config:
    """Build the Config from a recipe, flags and --set.

    Args:
        data: the DATA argument.
        columns: keys of the data section, by name.
        rest: dotted keys of other sections.
        recipe: recipe file or name.
        assignments: the --set strings.
    """
    from tinyhat.config import build_config

    chosen = [f"--{name}" for name in ("label", "labels", "target") if columns.get(name)]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: a column of one label, of lists, or of numbers")
    for flag in ("text", "target"):
        named = columns.get(flag) or []
        if len(set(named)) < len(named):
            raise UserError(f"--{flag} names a column twice: name each once")
    if columns.get("text") and columns.get("pair"):
        raise UserError("--text and --pair exclude each other: columns are joined, or read as a pair")
    given = {f"data.{key}": value for key, value in columns.items() if value not in (None, [], ())}
    if given.get("data.task") == "auto":
        del given["data.task"]
    flags = given | ({"data.path": data} if data else {}) | dict(rest)
    return build_config(recipe, {k: str(v) if isinstance(v, Path) else v for k, v in flags.items()}, assignments or [])


def say(sentence: str) -> None:
    """Tell people something on stderr; stdout belongs to results."""
    typer.echo(sentence, err=True)
