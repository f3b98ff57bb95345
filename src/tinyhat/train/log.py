"""What a run says while it trains: one JSON line per step, and a progress bar for people on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tinyhat.errors import missing_extra
from tinyhat.run import read_log, write_bytes

LINE_SECONDS = 30.0  # where stderr is no terminal, one line this often


class StepLog:
    """`log.jsonl`, cut back to a step on resume; optionally mirrored to TensorBoard.

    Args:
        path: the JSON lines file, or the null device on ranks that do not write.
        step: lines of later steps are dropped, because a resumed run will write them again.
        tensorboard: folder for TensorBoard events, or None.
    """

    def __init__(self, path: Path, step: int, tensorboard: Path | None = None) -> None:
        if path != Path(os.devnull):
            kept = [line for line in read_log(path) if line["step"] <= step]
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._stream = path.open("a", encoding="utf-8")
        self._writer = _tensorboard(tensorboard, step) if tensorboard else None

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; it is on disk, whole, when this returns."""
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        if self._writer:
            for key, value in line.items():
                if isinstance(value, int | float) and key != "step":
                    self._writer.add_scalar(key, value, line["step"])
            if "evaluation" in line:
                self._writer.add_scalar(
                    f"dev_{line['evaluation']['metric']}", line["evaluation"]["value"], line["step"]
                )

    def close(self) -> None:
        """Close the files."""
        self._stream.close()
        if self._writer:
            self._writer.close()


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing_extra("tensorboard", "track", "train.tensorboard = true") from None
    return SummaryWriter(folder, purge_step=step + 1)


class Bar:
    """A progress bar with documents/s, tokens/s, loss and time left; plain lines where stderr is no terminal."""

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True) -> None:
        self._console = Console(stderr=True)
        self._shown = shown
        self._title, self._total, self._done = title, total, done
        self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, facts="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, count: int = 1, facts: str = "") -> None:
        """Note that `count` more are done; `facts` is shown beside the bar."""
        self._done += count
        self._bar.update(self._task, advance=count, facts=facts)
        if self._shown and not self._console.is_terminal and time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            print(f"{self._title} {self._done}/{self._total} {facts}".rstrip(), file=sys.stderr, flush=True)
