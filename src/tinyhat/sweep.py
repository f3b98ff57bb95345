"""`sweep`: many short trainings over config paths, the hopeless ones cut short, the best one written as a recipe.

A sweep folder holds `study.db` (Optuna's record), `trials/NNN` (parameters and log of each) and `best.yaml`.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tinyhat.config import Config, changed
from tinyhat.data.dataset import Dataset
from tinyhat.data.read import read_dataset
from tinyhat.errors import UserError, missing_extra
from tinyhat.evaluate.metrics import MAIN_METRIC
from tinyhat.run import Run, read_json, read_log, remove, write_bytes, write_json
from tinyhat.train.classifier import Say, prepare, train_classifier
from tinyhat.verb import make_callable

DEFAULT = ("train.learning_rate=1e-5..1e-3:log", "train.head_rate=1..30:log", "train.layer_decay=0.7..1")
SEARCHED = ("reading", "encoder", "head", "train")  # the sections that a trial is made of
STARTUP = 4  # trials that are never cut short: the median they are judged by
_RANGE = re.compile(r"(?P<low>[^.]+(?:\.\d[^.]*)?)\.\.(?P<high>[^:]+)(?P<log>:log)?")


@dataclass(frozen=True)
class Axis:
    """One config path and the values it may take.

    Attributes:
        path: section.key.
        choices: the values, or empty for a range.
        low: of the range.
        high: of the range.
        log: the range is even in the logarithm.
    """

    path: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def suggest(self, trial: Any) -> Any:
        """Ask an Optuna trial for a value."""
        if self.choices:
            return trial.suggest_categorical(self.path, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.path, self.low, self.high, log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, log=self.log)


def read_axis(text: str) -> Axis:
    """Read ``train.epochs=1..5``, ``train.learning_rate=1e-5..1e-3:log`` or ``train.update=all,lora``.

    Whole numbers on both ends mean whole numbers between them.

    Raises:
        UserError: it is none of these.
    """
    path, sign, values = (part.strip() for part in text.partition("="))
    wrong = UserError(
        f"--over {text!r}: write section.key=low..high, section.key=low..high:log or section.key=a,b,c, for example "
        "--over train.learning_rate=1e-5..1e-3:log"
    )
    if not sign or "." not in path:
        raise wrong
    section = path.partition(".")[0]
    if section in Config.model_fields and section not in SEARCHED:
        raise UserError(
            f"--over {text!r}: a trial is the same whatever {section} says; search over {', '.join(SEARCHED)}"
        )
    found = _RANGE.fullmatch(values)
    if found is None:
        choices = tuple(_scalar(v.strip()) for v in values.split(",") if v.strip())
        if len(choices) < 2:
            raise wrong
        return Axis(path, choices)
    low, high = _scalar(found["low"]), _scalar(found["high"])
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high))
    if not numbers or low >= high or (found["log"] and low <= 0):
        raise UserError(f"--over {text!r}: a range rises from a lower to a higher number, with :log from above 0")
    if path.endswith("_rate") or not all(isinstance(x, int) for x in (low, high)):
        low, high = float(low), float(high)
    return Axis(path, (), low, high, found["log"] is not None)


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--over: {text!r} is not a value: write --over section.key=a,b,c without brackets") from None
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-5 as a string
        except ValueError:
            return value
    return value


def sweep_config(config: Config, out: Path, trials: int, over: Sequence[str], say: Say) -> dict[str, Any]:
    """Search, going on where an earlier call with the same arguments stopped.

    Args:
        config: what all trials share.
        out: the sweep folder, new, empty or of this sweep.
        trials: how many there should be in the end.
        over: axes as `read_axis` reads them; none: DEFAULT.
        say: where remarks go.

    Returns:
        ``best`` (value, parameters, metric) and ``trials``, one dict each in order.

    Raises:
        UserError: optuna is missing, an axis is wrong, the folder holds another sweep, no trial came to its end.
    """
    optuna = _optuna()
    axes = [read_axis(text) for text in over or DEFAULT]
    for axis in axes:  # a wrong path is found before anything runs
        for value in axis.choices or (axis.low, axis.high):
            changed(config, {axis.path: value})
    if config.encoder.model == "linear":
        raise UserError("sweep: the linear model has nothing to train in steps; name an encoder with --model")
    dataset = read_dataset(config.data, config.train.seed)
    if "dev" not in dataset.splits:
        raise UserError(f"{dataset.name} has no dev split to judge trials on: add one, or give a single file")
    study = _open(optuna, config, dataset, out, [*over] or list(DEFAULT))
    done = _finished(optuna, study)
    if done:
        say(f"sweep: {len(done)} of {trials} trials are there already")
    while len(done) < trials:
        _trial(optuna, study, config, dataset, axes, out, len(done), say)
        done = _finished(optuna, study)
    return _conclude(optuna, study, config, dataset, out, say)


def _open(optuna: Any, config: Config, dataset: Dataset, out: Path, over: list[str]) -> Any:
    """Create or load the study; its facts must be those of this sweep."""
    facts = {"config": config.model_dump(mode="json"), "over": over, "data_sha256": dataset.sha256}
    path = out / "sweep.json"
    if path.exists():
        if read_json(path) != facts:
            raise UserError(f"--out {out} holds a sweep of other data, settings or axes; name another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty and is not a sweep; name a new or empty folder")
    else:
        write_json(path, facts)
    study = optuna.create_study(
        storage=f"sqlite:///{out.resolve() / 'study.db'}",
        study_name="sweep",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
    )
    states = optuna.trial.TrialState
    waiting = [t.params for t in study.get_trials(states=(states.WAITING,))]
    for stale in study.get_trials(states=(states.RUNNING,)):
        study.tell(stale.number, state=states.FAIL)
        if stale.params and stale.params not in waiting:
            study.enqueue_trial(stale.params)  # it goes on from its checkpoint
    return study


def _finished(optuna: Any, study: Any) -> list[Any]:
    """Return the trials that need not run again: complete, cut short, or ended by an error of their own."""
    states = optuna.trial.TrialState
    found = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.FAIL))
    return [t for t in found if t.state != states.FAIL or "error" in t.user_attrs]


def _trial(
    optuna: Any, study: Any, config: Config, dataset: Dataset, axes: list[Axis], out: Path, number: int, say: Say
) -> None:
    """Run one trial to its end; what it proposes depends on the finished ones alone, so a stop changes nothing."""
    study.sampler = optuna.samplers.TPESampler(seed=config.train.seed + 1000 * number, n_startup_trials=STARTUP)
    trial = study.ask()
    values = {axis.path: axis.suggest(trial) for axis in axes}
    folder = out / "trials" / f"{number:03d}"
    said = ", ".join(f"{k.removeprefix('train.')} {_short(v)}" for k, v in values.items())
    if not (folder / "values.json").exists() or read_json(folder / "values.json") != values:
        remove(folder)
        write_json(folder / "values.json", values)
    run, states = Run(folder), optuna.trial.TrialState
    for place, value in enumerate(_dev_values(run)):
        trial.report(value, place)

    def watch(value: float) -> None:
        trial.report(value, len(_dev_values(run)))
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        here = changed(config, values)
        trained = train_classifier(prepare(here, dataset, _quiet), here, dataset, run, True, _quiet, watch)
        trial.set_user_attr("seconds", trained.outcome.seconds)
        best = trained.outcome.best_value
        if best is None or not math.isfinite(best):
            raise UserError(f"its dev value is {best}, with {said}")
        study.tell(trial, best)
        say(f"trial {number}: {best:.4f} with {said}")
    except optuna.TrialPruned:
        study.tell(trial, state=states.PRUNED)
        say(f"trial {number}: cut short with {said}")
    except (UserError, RuntimeError, MemoryError) as error:  # of two trials one may be too large for the memory
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        trial.set_user_attr("error", f"{kind}{error}")
        study.tell(trial, state=states.FAIL)
        say(f"trial {number}: {kind}{error}")
    gc.collect()  # a trainer refers to itself: the next trial needs its memory
    for leftover in (run.checkpoints, run.model, run.path / "adapter"):
        remove(leftover)


def _conclude(optuna: Any, study: Any, config: Config, dataset: Dataset, out: Path, say: Say) -> dict[str, Any]:
    states = optuna.trial.TrialState
    if not study.get_trials(deepcopy=False, states=(states.COMPLETE,)):
        errors = [t.user_attrs["error"] for t in _finished(optuna, study) if "error" in t.user_attrs]
        raise UserError(f"no trial came to its end: {errors[0] if errors else 'all were cut short'}")
    metric = MAIN_METRIC[dataset.task]
    best = {"value": study.best_value, "metric": f"dev_{metric}", "parameters": study.best_params}
    head = f"# Best of {len(_finished(optuna, study))} trials: dev {metric} {study.best_value:.4f}.\n#\n"
    head += "#   tinyhat train DATA --recipe best.yaml --out RUN\n"
    tree = recipe_of(changed(config, study.best_params))
    write_bytes(out / "best.yaml", (head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)).encode())
    say(f"best: {study.best_value:.4f} ({metric} on dev), written to {out / 'best.yaml'}")
    rows = [
        {"trial": i, "state": t.state.name.lower(), "value": t.value, "parameters": t.params,
         "seconds": t.user_attrs.get("seconds")}
        for i, t in enumerate(_finished(optuna, study))
    ]  # fmt: skip
    return {"best": best, "trials": rows}


def recipe_of(config: Config) -> dict[str, dict[str, Any]]:
    """Return what differs from the defaults, as a recipe; where the data lies is left out, its columns are not."""
    default, tree = Config().model_dump(mode="json"), config.model_dump(mode="json")
    skipped = {("data", "path"), ("data", "source"), ("data", "limit")}
    found = {
        section: {k: v for k, v in keys.items() if v != default[section][k] and (section, k) not in skipped}
        for section, keys in tree.items()
    }
    return {section: keys for section, keys in found.items() if keys}


def _dev_values(run: Run) -> list[float]:
    return [line["evaluation"]["value"] for line in read_log(run.log) if "evaluation" in line]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _quiet(_: str) -> None:
    pass


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise missing_extra("optuna", "sweep", "tinyhat sweep") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


make_callable(__name__, "sweep")
