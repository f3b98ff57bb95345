"""The verbs in Python, the same as on the command line: check, train, tune, evaluate, predict, pretrain, demo."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from tinyhat.conclude import SHOWN, decide_run, labels_of, measure, measure_run, report_run, write_rule
from tinyhat.config import Config, build_config, changed
from tinyhat.data.dataset import Split
from tinyhat.data.read import read_dataset, read_documents, read_split
from tinyhat.decision import read_decision
from tinyhat.errors import UserError
from tinyhat.evaluate.scores import read_scores
from tinyhat.predict import Classifier, load, text_columns
from tinyhat.run import LATER, Run, atomic_path, read_json, write_json
from tinyhat.scale.engine import Engine
from tinyhat.train.ranks import world_size
from tinyhat.tune.rule import fit_rule
from tinyhat.types import Prediction, Scores

if TYPE_CHECKING:
    from tinyhat.train.find_rate import RateCurve

Say = Callable[[str], None]
TRAINING = (  # what metrics.json knows of training; no verb after it changes them
    "samples_per_second", "tokens_per_second", "peak_memory_gb", "train_seconds", "steps", "best_step", "stopped_early",
    "forgetting",
)  # fmt: skip


def _quiet(_: str) -> None:
    pass


def check(data: str | Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Say what is in the data and what is wrong with it: ``tinyhat.check("laws.csv")["leakage"]``.

    Args:
        data: file, folder, corpus name or hub name, as on the command line.
        settings: dotted configuration keys; ``encoder.model`` counts tokens (``linear``: words).

    Returns:
        Counts, lengths, duplicates, leakage, conflicts and unseen labels, as ``tinyhat check --json`` prints them.

    Raises:
        UserError: whatever is wrong with the data or the settings, in one sentence.
    """
    return check_config(build_config(None, {**(settings or {}), "data.path": str(data)}))


def check_config(config: Config) -> dict[str, Any]:
    """As `check`, with the configuration at hand."""
    from tinyhat.data.check import check_dataset

    dataset = read_dataset(config.data, config.train.seed)
    tokenizer = None
    if config.encoder.model != "linear":
        from tinyhat.encoder.load import load_tokenizer

        tokenizer = load_tokenizer(config.encoder.model)
    return check_dataset(dataset, tokenizer, config.evaluate.frequent, config.reading.max_tokens)


def train(
    data: str | Path,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    resume: bool = False,
    say: Say = print,
) -> Run:
    """Train a classifier: ``tinyhat.train("laws.csv", "runs/laws", {"train.epochs": 2})``.

    Args:
        data: file, folder, corpus name or hub name, as on the command line.
        out: the run folder, new or empty.
        settings: dotted configuration keys and their values.
        recipe: a YAML recipe below the settings.
        resume: go on with this very run.
        say: where remarks go.

    Returns:
        The finished run; ``tinyhat.load(run.path)`` predicts with it.

    Raises:
        UserError: whatever is wrong with the data, the settings or the folder, in one sentence.
    """
    from tinyhat.pipeline import train as train_config

    return train_config(build_config(recipe, {**(settings or {}), "data.path": str(data)}), out, resume, say)


def find_rate(
    data: str | Path, settings: Mapping[str, Any] | None = None, recipe: str | Path | None = None, say: Say = _quiet
) -> RateCurve:
    """Try rising learning rates: ``tinyhat.find_rate("laws.csv").suggested``. Nothing is written.

    Args:
        data: file, folder, corpus name or hub name, as on the command line.
        settings: dotted configuration keys and their values.
        recipe: a YAML recipe below the settings.
        say: where remarks go.

    Raises:
        UserError: whatever is wrong with the data or the settings, in one sentence.
    """
    return find_rate_config(build_config(recipe, {**(settings or {}), "data.path": str(data)}), say)


def find_rate_config(config: Config, say: Say = _quiet) -> RateCurve:
    """As `find_rate`, with the configuration at hand."""
    from tinyhat.train.find_rate import find_rate as search

    if config.encoder.model == "linear":
        raise UserError("--find-rate: the linear model has no learning rate; name an encoder with --model")
    return search(config, read_dataset(config.data, config.train.seed), say)


def sweep(
    data: str | Path,
    out: str | Path,
    trials: int = 20,
    over: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Search over config paths: ``tinyhat.sweep("laws.csv", "sweeps/laws", 20, ["train.epochs=1..5"])``.

    Args:
        data: file, folder, corpus name or hub name, as on the command line.
        out: the sweep folder; the best configuration is written there as best.yaml.
        trials: trainings in the end; a sweep that was stopped goes on.
        over: axes, as --over takes them.
        settings: dotted configuration keys and their values, for all trials.
        recipe: a YAML recipe below the settings.
        say: where remarks go.

    Raises:
        UserError: as `tinyhat.sweep.sweep_config`.
    """
    from tinyhat.sweep import sweep_config

    return sweep_config(
        build_config(recipe, {**(settings or {}), "data.path": str(data)}), Path(out), trials, over, say
    )


def tune(
    run: str | Path,
    data: str | Path | None = None,
    split: str = "dev",
    rule: str | None = None,
    assignments: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    say: Say = _quiet,
) -> dict[str, Any]:
    """Fit the decision rule of a run again, on its saved scores or on `data`; weights stay as they are.

    Args:
        run: the run folder.
        data: other labelled documents, or None for the saved scores.
        split: which split of them.
        rule: auto, thresholds, global, top_k or argmax; None keeps the run's.
        assignments: further ``tune.key=value`` settings.
        columns: columns of `data` (text, pair, label, labels, target, id) where they differ from the run's.
        say: where remarks go.

    Returns:
        The run's metrics under the new rule, as in metrics.json.
    """
    folder = Run(Path(run))
    manifest = folder.read_manifest()
    config = _changed(manifest, assignments, {"tune.rule": rule}, columns)
    before = read_json(folder.metrics) if folder.metrics.exists() else {}
    if data is None and split == "dev":
        decision = decide_run(folder, config, manifest)
    else:
        scores = _scores(folder, config, data, split, None, say)
        fitted_on = {"split": split, "documents": len(scores.ids)} | ({"data": str(data)} if data else {})
        fitted = fit_rule(scores, config.tune, labels_of(manifest).unseen.tolist())
        decision = write_rule(folder, config, manifest, fitted, fitted_on, scores.plan)
    sections = config.model_dump(mode="json")
    manifest["config"] |= {section: sections[section] for section in LATER}
    write_json(folder.manifest, manifest)
    facts = {key: before[key] for key in (*TRAINING, "baseline", "notes") if key in before}
    metrics = measure_run(folder, config, manifest, facts | {"reading": {before.get("split"): before.get("reading")}})
    report_run(folder, manifest, metrics, None)
    where = decision.fitted_on
    say(f"rule: {decision.rule.kind}, fitted on {where['documents']} {where['split']} documents")
    return metrics


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    plan: str | None = None,
    assignments: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    say: Say = _quiet,
) -> dict[str, Any]:
    """Measure a run on its saved scores, or on other labelled documents.

    Args:
        run: the run folder.
        data: other labelled documents; they are predicted first.
        split: dev or test; None is test where there is one.
        plan: numeric plan for `data`.
        assignments: further ``evaluate.key=value`` settings.
        columns: columns of `data` (text, pair, label, labels, target, id) where they differ from the run's.
        say: where remarks go.

    Returns:
        The metrics, as in metrics.json for one split.
    """
    folder = Run(Path(run))
    manifest = folder.read_manifest()
    config = _changed(manifest, assignments, {}, columns)
    if plan is not None and data is None:
        raise UserError(
            "--plan changes how documents are computed: give them with --data (saved scores stay as they are)"
        )
    chosen = split or next((n for n in reversed(SHOWN) if (folder.scores / f"{n}.safetensors").exists()), "test")
    scores = _scores(folder, config, data, chosen, plan, say)
    decision = read_decision(folder.model)
    metrics = measure(scores, decision, chosen, labels_of(manifest), config, saved=data is None)
    before = read_json(folder.metrics) if folder.metrics.exists() else {}
    beside = {key: before[key] for key in TRAINING if key in before}
    if data is None and before.get("baseline"):
        beside["baseline"] = before["baseline"]["splits"].get(chosen)
    return metrics | beside


def predict(
    run: str | Path,
    source: str,
    out: Path | None = None,
    top_k: int | None = None,
    plan: str | None = None,
    columns: Mapping[str, Any] | None = None,
    say: Say = _quiet,
    engine: Engine | None = None,
    workers: int = 2,
) -> int:
    """Predict every document of `source`, one JSON line each, in input order and flat memory.

    Args:
        run: the run folder or its model folder.
        source: csv, tsv, jsonl, parquet or txt file; ``-`` reads JSON lines from stdin.
        out: file to write, complete or not at all; None is stdout.
        top_k: scores of the k best labels instead of the decided ones.
        plan: numeric plan; None is the one the thresholds were tuned in.
        columns: text, pair, id column names where they cannot be detected.
        say: where remarks go.
        engine: ``ray``: workers on a Ray cluster. Under torchrun the ranks share the documents without it.
        workers: Ray actors.

    Returns:
        The number of bad rows; each has an ``error`` field in the output.
    """
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    if engine is not None or world_size() > 1:
        sharing = (engine or "local", workers, top_k, plan, columns, say)
        bad, total = _predict_sharded(Path(run), source, out, *sharing)
        _tell_bad(bad, total, source, say)
        return bad
    classifier = load(run, plan)
    rows = read_documents(source, text_columns(Path(run), columns or {}))
    bad = total = 0
    with _output(out) as stream:
        for result in classifier.rows(rows, top_k):
            bad += "error" in result
            total += 1
            stream.write(json.dumps(result, ensure_ascii=False) + "\n")
    _tell_bad(bad, total, source, say)
    return bad


def _tell_bad(bad: int, total: int, source: str, say: Say) -> None:
    if bad and bad == total:
        raise UserError(f"none of the {total} rows of {source} could be read: see the 'error' field of any line")
    if bad:
        say(f"{bad} of {total} rows could not be read; their lines have an 'error' field")


def _predict_sharded(run: Path, source: str, out: Path | None, *settings: Any) -> tuple[int, int]:
    from tinyhat.scale.predict import predict_sharded

    if out is None or source == "-":
        raise UserError("several workers read a file and write one: name INPUT and --out FILE")
    return predict_sharded(run, source, out, *settings)


def pretrain(
    corpus: str | Path,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    resume: bool = False,
    say: Say = print,
) -> Run:
    """Train an LTG-BERT from nothing: ``tinyhat.pretrain("novels.txt", "runs/ltg", {"pretrain.size": "xs"})``.

    Args:
        corpus: file, folder, corpus name or hub name, as on the command line; labels are not needed.
        out: the run folder, new or empty.
        settings: dotted configuration keys and their values.
        recipe: a YAML recipe below the settings.
        resume: go on with this very run.
        say: where remarks go.

    Returns:
        The finished run; ``{"encoder.model": run.path}`` fine-tunes it.

    Raises:
        UserError: whatever is wrong with the text, the tokenizer, the settings or the folder, in one sentence.
    """
    from tinyhat.pretrain import pretrain_config

    return pretrain_config(build_config(recipe, {**(settings or {}), "data.path": str(corpus)}), out, resume, say)


def demo(out: str | Path = "runs/demo", say: Say = print) -> Run:
    """Train minilm on the docstrings of the installed libraries, offline and in a few minutes; return the run.

    Args:
        out: the run folder; a finished demo that is there already is used again, a stopped one is resumed.
        say: where remarks go.
    """
    from tinyhat.demo import demo as run_demo

    return run_demo(Path(out), say)[0]


@contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    if out.exists() and not out.is_file():  # a device or a pipe cannot be replaced, only written to
        with out.open("w", encoding="utf-8") as stream:
            yield stream
        return
    with atomic_path(out.resolve()) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


def _changed(
    manifest: dict[str, Any], assignments: Sequence[str], flags: Mapping[str, Any], columns: Mapping[str, Any] | None
) -> Config:
    """Return the run's configuration with changes on top."""
    section = next((a.partition(".")[0].strip() for a in assignments if a.split(".")[0].strip() not in LATER), None)
    if section is not None:
        raise UserError(f"--set {section}.…: a finished run can only change the sections {' and '.join(LATER)}")
    given = {f"data.{k}": v for k, v in (columns or {}).items() if v}
    given |= {k: v for k, v in flags.items() if v is not None}
    return changed(manifest["config"], given, assignments)


def _scores(run: Run, config: Config, data: str | Path | None, split: str, plan: str | None, say: Say) -> Scores:
    """Return saved scores, or predict `data` and return its scores."""
    if data is None:
        return read_scores(run.scores, split)
    classifier = load(run.path, plan)
    documents, notes = _labelled(config, data, split, classifier)
    for note in notes:
        say(f"data: {note}")
    found: list[Prediction] = list(classifier.predictor.predict_logits(documents.documents()))
    logits = np.stack([p.logits for p in found if p.logits is not None])
    return Scores(documents.ids, logits, documents.targets, classifier.predictor.plan)


def _labelled(config: Config, data: str | Path, split: str, classifier: Classifier) -> tuple[Split, list[str]]:
    same = str(data) == config.data.path  # a corpus again, from the place it was read from
    source = config.data.source if same else None
    plain = {"path": str(data), "limit": None, "source": source, "group": None, "weight": None}
    columns = config.data.model_copy(update=plain)
    return read_split(columns, split, classifier.labels, classifier.decision.task)
