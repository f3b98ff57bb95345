"""RESULTS.md: the last recorded table of every benchmark, each written by its script with ``--record``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch
import transformers

from tinyhat.errors import UserError

FILE = Path(__file__).parent / "RESULTS.md"
HEAD = "# Results\n\nEach section is written by the benchmark it names when run with `--record`.\n"


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """End the script called `name` with exit code 2 and one sentence where the user made a mistake."""
    try:
        yield
    except UserError as error:
        print(f"benchmarks/{name}.py: {error}", file=sys.stderr)
        sys.exit(2)


def record(name: str, table: str) -> None:
    """Write `table` as the section of benchmark `name`, with the command, the day and the machine.

    Args:
        name: the script without ``.py``.
        table: plain text, shown as it is.
    """
    sections = _read()
    command = " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    facts = f"{date.today()}, {_machine()}, {versions}"
    sections[name] = f"`{command}`\n\n{facts}\n\n```\n{table.rstrip()}\n```\n"
    text = HEAD + "".join(f"\n## {key}\n\n{sections[key]}" for key in sorted(sections))
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(FILE)


def _read() -> dict[str, str]:
    if not FILE.exists():
        return {}
    parts = FILE.read_text().split("\n## ")[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip("\n") + "\n" for part in parts}


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{torch.get_num_threads()} threads of {model}"
