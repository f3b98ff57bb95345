"""The command line: one thin file per verb, heavy imports inside the commands, a mistake is one sentence and exit 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import typer
from safetensors import SafetensorError

from tinyhat import __version__
from tinyhat.cli import check, demo, evaluate, predict, train, tune
from tinyhat.errors import UserError

DISK_FULL = "the disk is full{}: free some space and run again (train: with --resume)"

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
    ("tune", tune.command),
    ("evaluate", evaluate.command),
    ("predict", predict.command),
    ("demo", demo.command),
):
    app.command(verb)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 2 and one sentence on stderr for a mistake, 130 when interrupted.

    Args:
        arguments: without the program's name; None takes them from the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # --debug is understood anywhere on the line, as users type it at the end
    words = (["--debug"] if debug else []) + [word for word in words if word != "--debug"]
    try:
        app(words, prog_name="tinyhat")
    except UserError as error:
        _stop(str(error), debug)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our stdout (head, less) has gone: nothing is wrong
        sys.exit(0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _stop(DISK_FULL.format(f" at {error.filename}" if error.filename else ""), debug)
        elif isinstance(error, PermissionError) and error.filename:
            _stop(f"{error.filename} may not be read or written: check its permissions", debug)
        raise
    except SafetensorError as error:
        # safetensors reports the system's errors in words
        if "os error 28" in str(error) or "os error 122" in str(error):
            _stop(DISK_FULL.format(""), debug)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _stop(sentence: str, debug: bool) -> None:
    if debug:
        raise
    print(f"tinyhat: {sentence}", file=sys.stderr)
    sys.exit(2)
