"""The command line: one thin file per verb, heavy imports inside the commands, a mistake is one sentence and exit 2."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Sequence

import typer
from safetensors import SafetensorError

from tinyhat import __version__
from tinyhat.cli import (
    arena,
    check,
    demo,
    embed,
    evaluate,
    experiment,
    export,
    layers,
    predict,
    pretrain,
    search,
    sweep,
    train,
    tune,
)  # fmt: skip
from tinyhat.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL = "the disk is full{}: free some space and run again (train and embed: with --resume)"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Put a classifier on any pretrained transformer encoder and carry it to production.",
)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of a mistake too."),
) -> None:
    pass


for verb, command in (
    ("check", check.command),
    ("train", train.command),
    ("sweep", sweep.command),
    ("tune", tune.command),
    ("evaluate", evaluate.command),
    ("predict", predict.command),
    ("pretrain", pretrain.command),
    ("embed", embed.command),
    ("layers", layers.command),
    ("search", search.command),
    ("export", export.command),
    ("arena", arena.command),
    ("demo", demo.command),
):
    app.command(verb)(command)


app.add_typer(experiment.app, name="experiment")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 2 and one sentence on stderr for a mistake, 130 when interrupted.

    Args:
        arguments: without the program's name; None takes them from the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        _speak_utf8()
    # OpenMP threads wait briefly, then sleep (read when torch is loaded): beside another busy process on two cores the
    # default spinning made small products 4 to 7 times slower; on an idle machine there was no difference
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    debug = "--debug" in words
    # --debug is understood anywhere on the line, as users type it at the end
    words = (["--debug"] if debug else []) + [word for word in words if word != "--debug"]
    try:
        code = app(words, prog_name="tinyhat", standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or debug:
            raise
        print(f"tinyhat: {sentence}", file=sys.stderr)
        code = 2
    if code == 130:
        print("interrupted", file=sys.stderr)
    if code:
        sys.exit(code)
    if arguments is None and os.environ.get("RANK", "0") != "0":
        # gloo's threads end in static destructors, behind Python: with all done, one run in thirty got SIGABRT there
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _sentence(error: Exception) -> str | None:
    """Return what a user should read about an error that is theirs or their machine's, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SafetensorError):  # it reports the system's errors in words
        full = any(f"os error {code}" in str(error) for code in FULL)
        return DISK_FULL.format("") if full else None
    if isinstance(error, OSError):
        where = f" at {error.filename}" if error.filename else ""
        if error.errno in FULL:
            return DISK_FULL.format(where)
        return f"{error.strerror}{where}: check the path and its permissions" if error.strerror else None
    message = getattr(error, "format_message", None)  # a usage error: unknown flag, missing argument, wrong choice
    if callable(message):
        text = " ".join(str(message()).split()).rstrip(".")
        return f"{text} (see tinyhat --help, or --help after a verb)"
    return None


def _speak_utf8() -> None:
    """JSON lines are UTF-8 whatever the terminal says; a closed pipe ends us quietly, as it does cat."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
