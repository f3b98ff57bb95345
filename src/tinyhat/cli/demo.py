"""`tinyhat demo`: the main job, offline, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyhat.cli import options as o


def command(
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run folder.")] = Path("runs/demo"),
) -> None:
    """Train minilm on the docstrings of the installed libraries, beside the baseline, and predict three documents."""
    from tinyhat.demo import demo

    demo(out, o.say)
