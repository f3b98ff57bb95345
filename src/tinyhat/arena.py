"""`arena`: ways of reading long documents compared on one budget, each in its own process, on the same documents.

An arena folder holds `arms/NAME/seed_S` (a run each, with `arm.json` when complete), `arena.json`, `arena.md` and
`arena.svg`. What a process of an arm does is in `tinyhat.arena_arm`.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyhat.config import Config, build_config
from tinyhat.data.read import read_dataset
from tinyhat.errors import UserError
from tinyhat.run import read_json, remove, write_json
from tinyhat.verb import make_callable

Say = Callable[[str], None]
# what only windows know goes back to its default, whatever the recipe of the other arms says (None: the default)
CUT = {"reading.vote": "mean", "reading.learn": "windows", "reading.stride": None, "reading.title_tokens": 0}
ARMS: dict[str, dict[str, Any]] = {
    "linear": {"encoder.model": "linear"},
    **{
        name: {"reading.strategy": name} | CUT
        for name in ("head", "tail", "head_tail", "middle", "random", "tfidf", "textrank")
    },
    "windows": {"reading.strategy": "windows", "reading.vote": "mean"},
    **{
        f"windows_{vote}": {"reading.strategy": "windows", "reading.vote": vote}
        for vote in ("mean_probability", "max", "top_k", "majority", "attention", "transformer")
    },
}
DEFAULT = ("linear", "head", "tail", "head_tail", "middle", "tfidf", "textrank", "windows", "windows_max",
           "windows_attention", "windows_transformer")  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What each arm may spend on training, exactly one of the two.

    Attributes:
        tokens: tokens computed in training; what a strategy does not read costs nothing.
        seconds: wall-clock seconds of training steps, at the speed of a short trial on this machine.
    """

    tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Entry:
    """One run of the arena: a way of reading under one seed."""

    folder: Path
    arm: str
    seed: int

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.folder / "arms" / self.arm / f"seed_{self.seed}"

    @property
    def figures(self) -> Path:
        """What was measured; there when the run is complete."""
        return self.path / "arm.json"

    @property
    def log(self) -> Path:
        """All that its processes said, with the traceback of what went wrong."""
        return self.path.with_suffix(".log")

    @property
    def failed(self) -> Path:
        """Why its last process did not come to its end."""
        return self.path.with_suffix(".failed.json")


def arena(
    data: str | Path,
    out: str | Path,
    arms: Sequence[str] = (),
    seeds: int = 3,
    tokens: int | None = None,
    minutes: float | None = None,
    min_tokens: int = 0,
    settings: Mapping[str, Any] | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Compare ways of reading long documents: ``tinyhat.arena("laws.csv", "arenas/laws", minutes=10)``.

    Args:
        data: file, folder, corpus name or hub name, as on the command line.
        out: the arena folder; an arena that was stopped goes on.
        arms: names of arms; none: the usual ones.
        seeds: trainings of every arm.
        tokens: budget of one training, or `minutes` instead.
        minutes: of training steps, by the clock.
        min_tokens: only documents at least so long take part.
        settings: dotted configuration keys and their values, for all arms.
        say: where remarks go.

    Raises:
        UserError: as `tinyhat.arena.arena_config`.
    """
    config = build_config(None, {**(settings or {}), "data.path": str(data)})
    budget = Budget(tokens, None if minutes is None else 60 * minutes)
    return arena_config(config, Path(out), arms or DEFAULT, seeds, budget, min_tokens, 1, say)


def arena_config(
    config: Config,
    out: Path,
    arms: Sequence[str],
    seeds: int,
    budget: Budget,
    min_tokens: int = 0,
    jobs: int = 1,
    say: Say = print,
) -> dict[str, Any]:
    """Train every arm under every seed, compare them and write table and plot into `out`.

    Args:
        config: what all arms share.
        out: the arena folder; complete runs in it are used again, the others are trained.
        arms: names out of ARMS; the first one that is not ``linear`` is what the others are compared with.
        seeds: train under the seeds 0, 1, …
        budget: of one training.
        min_tokens: only documents with at least so many tokens take part, in all splits.
        jobs: arms trained at the same time; they share the cores.
        say: where remarks go.

    Returns:
        ``settings``, ``arms`` (name to figures), ``failed`` (name to the sentence), as in arena.json.

    Raises:
        UserError: an unknown arm, the linear model as the encoder, no or two budgets or an empty one, an arena with
            other data or settings in `out`, all arms failed.
    """
    _check(config, arms, budget)
    dataset = read_dataset(config.data, 0)  # what is wrong with the data is said once, before any process starts
    settings: dict[str, Any] = {"config": config.model_dump(mode="json"), "data_sha256": dataset.sha256}
    settings |= {"tokens": budget.tokens, "seconds": budget.seconds, "min_tokens": min_tokens}
    _claim(out, settings)
    entries = [Entry(out, arm, seed) for seed in range(seeds) for arm in arms]
    todo = [entry for entry in entries if not entry.figures.exists()]
    say(f"arena: {len(entries)} runs, {len(entries) - len(todo)} of them complete already")
    with ThreadPoolExecutor(jobs) as pool:
        problems = pool.map(lambda entry: _in_process(entry, jobs), todo)
        for entry, problem in zip(todo, problems, strict=True):
            say(f"arena: {entry.arm}, seed {entry.seed}: {problem or 'done'}")
    from tinyhat.arena_table import conclude

    return conclude(out, arms, seeds, settings, config.evaluate.bootstrap or 1000)


def _check(config: Config, arms: Sequence[str], budget: Budget) -> None:
    for arm in arms:
        if arm not in ARMS:
            raise UserError(f"--arms {arm!r} is not one of {', '.join(ARMS)}")
    if config.encoder.model == "linear":
        raise UserError(
            "--model linear reads whole documents, so every arm would be the same: name an encoder (the arm 'linear' "
            "is compared with it)"
        )
    if (budget.tokens is None) == (budget.seconds is None):
        raise UserError("an arena needs one budget: give --tokens N or --minutes M")
    amount = budget.tokens if budget.seconds is None else budget.seconds
    if amount is None or not (amount > 0 and math.isfinite(amount)):
        raise UserError("an arena needs something to spend: give --tokens or --minutes a number above 0")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists():
        if read_json(path) != settings:
            raise UserError(f"{out} holds an arena with other data or settings: name another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and no arena: name a new --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _in_process(entry: Entry, jobs: int) -> str | None:
    """Run one entry in a process of its own, so that its peak memory is its own; return what went wrong, or None.

    A command, not multiprocessing: its spawn would run a script that calls the arena at its top level once more.
    """
    remove(entry.failed)
    entry.path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tinyhat.arena_arm", str(entry.folder), entry.arm, str(entry.seed)]
    with entry.log.open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(jobs)).returncode
    if code == 0:
        return None
    if not entry.failed.exists():  # killed, or it never got as far as that
        write_json(entry.failed, {"error": f"ended with exit code {code}: see {entry.log}"})
    return str(read_json(entry.failed)["error"])


def _environment(jobs: int) -> dict[str, str]:
    """Return the environment of an arm's process: its share of the cores, or what the user has set."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // jobs))}


make_callable(__name__, "arena", __name__)
