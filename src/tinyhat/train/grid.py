"""The command line that the experiments share: flags of a grid, what is wrong with them, and the start."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tinyhat.errors import UserError
from tinyhat.train.trial import Bench, Trial, choose_plans, list_plans, run_grid


@dataclass(frozen=True)
class Grid:
    """What an experiment hands over, made from its flags.

    Attributes:
        task: ``classification`` or ``language_modeling``.
        rows: further columns of its runs, a row of the grid each.
        data: a hash of the documents that are read.
        build: makes what a run needs; its second argument is a folder for what the run writes.
    """

    task: str
    rows: list[Mapping[str, str]]
    data: str
    build: Callable[[Trial, Path], Bench]


def add_grid_flags(parser: argparse.ArgumentParser, settings: type[Any], data: str) -> None:
    """Add the flags that all experiments have.

    Args:
        parser: of the experiment.
        settings: its dataclass of numbers; every field becomes a flag.
        data: default of ``--data``.
    """
    parser.add_argument("--config", default="all", help="all, minimum, or plans with commas between them")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1")
    parser.add_argument("--data", type=Path, default=Path(data), help="what prepare_data.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/dtypes"), help="RESULTS")
    parser.add_argument("--limit", type=int, help="at most so many documents (windows) of each split")
    parser.add_argument("--watch", type=int, default=10, help="steps between two looks at which weights moved")
    parser.add_argument("--only-missing", action="store_true", help="go on with a grid that stopped half-way")
    parser.add_argument("--list", action="store_true", help="print all plans with their dtypes")
    for field in fields(settings):
        kind = float if isinstance(field.default, float) else int
        parser.add_argument(f"--{field.name}", f"--{field.name.replace('_', '-')}", type=kind, default=field.default)


def start(
    script: str,
    options: argparse.Namespace,
    settings_type: type[Any],
    prepare: Callable[[argparse.Namespace, Any], Grid],
) -> None:
    """Run a grid; exit code 2 and one sentence for a mistake, before anything runs.

    Args:
        script: named in the sentence.
        options: the parsed flags of `add_grid_flags`.
        settings_type: its dataclass of numbers.
        prepare: reads the data and refuses what cannot run.
    """
    if options.list:
        print(list_plans())
        return
    try:
        settings = settings_type(**{field.name: getattr(options, field.name) for field in fields(settings_type)})
        plans, seeds = check_flags(options, settings)
        require_folder(options.out)
        grid = prepare(options, settings)
        facts = asdict(settings) | {name: getattr(options, name) for name in ("limit", "watch")} | {"data": grid.data}
        trials = [
            Trial(grid.task, plan, seed, row, facts)
            for row in grid.rows
            for seed in seeds  # a grid that is stopped has seen every plan
            for plan in plans
        ]
        with tempfile.TemporaryDirectory() as scratch:
            run_grid(
                trials,
                lambda trial: grid.build(trial, Path(scratch)),
                options.out,
                options.only_missing,
                settings.eval_steps,
                lambda sentence: print(sentence, file=sys.stderr, flush=True),
            )
    except (UserError, ValidationError) as error:
        print(f"{script}: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"


def check_flags(options: argparse.Namespace, settings: Any) -> tuple[list[str], list[int]]:
    """Return the plans and seeds that are asked for.

    Args:
        options: the parsed flags.
        settings: the experiment's dataclass of numbers, which has ``train_config``.

    Raises:
        UserError: a number that is too small, no plan, or no seed.
        ValidationError: numbers that the train section refuses.
    """
    plans = choose_plans(options.config)
    if not plans:
        raise UserError("--config names no plan: give all, minimum, or names with commas (--list prints them)")
    counts = ("seeds", "limit", "watch", *(f.name for f in fields(settings) if isinstance(f.default, int)))
    require_counts(options, counts)
    if options.seed is not None and options.seed < 0:
        raise UserError(f"--seed {options.seed} is below 0: give 0 or more")
    settings.train_config(plans[0], 0)
    return plans, [options.seed] if options.seed is not None else list(range(options.seeds))


def require_counts(options: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Stop unless each of these flags is at least 1, or not given.

    Raises:
        UserError: naming the first that is not.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} is below 1: give 1 or more")


def require_folder(out: Path) -> None:
    """Make the folder that results will go to.

    Raises:
        UserError: it cannot be one.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be a folder ({error.strerror}): name another") from None
