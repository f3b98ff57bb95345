"""The story: read, train, score, tune, evaluate, report. Each step leaves its result in the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyhat.conclude import SHOWN, decide_run, headline, main_split, measure, measure_run, report_run
from tinyhat.config import Config
from tinyhat.data.dataset import Dataset
from tinyhat.errors import UserError
from tinyhat.evaluate.scores import write_scores
from tinyhat.run import Run, environment, freed_if_refused, open_run, process_memory_gb, read_json, write_json
from tinyhat.train.ranks import is_first, leave, wait, world_size
from tinyhat.tune.rule import check_rule, fit_rule
from tinyhat.types import IntArray, Scores

if TYPE_CHECKING:
    from tinyhat.data.reading import Reading
    from tinyhat.evaluate.linear import LinearModel

Say = Callable[[str], None]


def train(config: Config, out: str | Path, resume: bool = False, say: Say = print) -> Run:
    """Do the main job: from documents to a decided, measured, saved classifier with its report.

    Args:
        config: what to do; ``config.data.path`` says with which documents.
        out: the run folder, new or empty, or with `resume` this very run.
        resume: go on after an interruption.
        say: where remarks for people go.

    Returns:
        The run folder, complete.

    Raises:
        UserError: as the data, the configuration or the folder deserve.
    """
    from tinyhat.data.read import read_dataset

    return train_dataset(config, read_dataset(config.data, config.train.seed), out, resume, say)


def train_dataset(config: Config, dataset: Dataset, out: str | Path, resume: bool = False, say: Say = print) -> Run:
    """As `train`, with the documents at hand."""
    if "dev" not in dataset.splits:
        raise UserError(f"{dataset.name} has no dev split to tune on: add one, or give a single file to be split")
    check_rule(config.tune, dataset.task, len(dataset.labels))
    if world_size() > 1 and config.encoder.model == "linear":
        raise UserError("--model linear is fitted in one process: start it without torchrun")
    if not is_first():
        return _follow(config, dataset, Run(Path(out)), resume)
    new = not Path(out).exists()
    run = open_run(Path(out), config.model_dump(mode="json"), resume)
    with freed_if_refused(run, new, resume):
        _tell_story(config, dataset, run, resume, say)
    return run


def _tell_story(config: Config, dataset: Dataset, run: Run, resume: bool, say: Say) -> None:
    begin = time.monotonic()
    manifest = _begin_manifest(config, dataset, run, resume)
    for note in dataset.notes:
        say(f"data: {note}")
    if config.encoder.model == "linear":
        facts = _fit_linear(config, dataset, run, say)
    else:
        facts = _fit_encoder(config, dataset, run, manifest, resume, say)
    manifest |= facts.pop("manifest")
    decide_run(run, config, manifest)
    manifest["seconds"] = round(time.monotonic() - begin, 1)
    write_json(run.manifest, manifest)
    metrics = measure_run(run, config, manifest, facts | {"notes": list(dataset.notes)})
    report_run(run, manifest, metrics, dataset.splits[metrics["split"]])


def _follow(config: Config, dataset: Dataset, run: Run, resume: bool) -> Run:
    """What the other ranks do: train with rank 0, between the same meeting points, and nothing beside it."""
    from tinyhat.train.classifier import fix_threads, prepare, train_classifier

    wait()
    fix_threads(run.read_manifest()["threads"], _quiet)
    prepared = prepare(config, dataset, _quiet)
    wait()
    train_classifier(prepared, config, dataset, run, resume, _quiet)
    leave()
    return run


def _quiet(_: str) -> None:
    pass


def _begin_manifest(config: Config, dataset: Dataset, run: Run, resume: bool) -> dict[str, Any]:
    """Write the manifest that makes the folder a run; on resume, check that the data is the same."""
    before = run.read_manifest() if resume else {}
    if resume and before["data"]["sha256"] != dataset.sha256:
        raise UserError(f"--resume: the documents in {config.data.path} have changed since {run.path} began")
    if resume and before.get("ranks", 1) != world_size():
        raise UserError(
            f"--resume: {run.path} began with {before.get('ranks', 1)} processes: start as many again (there are "
            f"{world_size()})"
        )
    manifest: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "task": dataset.task,
        "data": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "splits": {name: len(split) for name, split in dataset.splits.items()},
            "notes": list(dataset.notes),
            "descriptors": dataset.descriptors,
        },
        "ranks": world_size(),
        "labels": list(dataset.labels.names),
        "train_counts": dataset.labels.train_counts.tolist(),
    }
    if "threads" in before:
        manifest["threads"] = before["threads"]
    write_json(run.manifest, manifest)
    return manifest


def _fit_encoder(
    config: Config, dataset: Dataset, run: Run, manifest: dict[str, Any], resume: bool, say: Say
) -> dict[str, Any]:
    """Fit the baseline, train the encoder and score dev and test; return facts for metrics and manifest."""
    from tinyhat.train.classifier import fix_threads, prepare, train_classifier

    manifest["threads"] = fix_threads(manifest.get("threads"), say)
    write_json(run.manifest, manifest)
    wait()
    prepared = prepare(config, dataset, say)
    baseline = _baseline(config, dataset, run, say) if config.evaluate.baseline else None
    wait()
    trained = train_classifier(prepared, config, dataset, run, resume, say)
    leave()
    predictor, outcome = trained.predictor, trained.outcome
    facts: dict[str, Any] = {
        "samples_per_second": outcome.documents_per_second,
        "tokens_per_second": outcome.tokens_per_second,
        "peak_memory_gb": outcome.peak_memory_gb,
        "train_seconds": outcome.seconds,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped_early,
        "baseline": baseline,
        "forgetting": trained.forgetting,
        "reading": {},
        "manifest": {"encoder": trained.facts, "plan": predictor.plan, "plan_reason": predictor.numeric_plan.reason},
    }
    for name in SHOWN:
        if name in dataset.splits:
            split = dataset.splits[name]
            say(f"score: {len(split)} {name} documents")
            reading = predictor.reader.read_cached(split.texts, split.pairs)
            write_scores(run.scores, name, Scores(split.ids, predictor.logits(reading), split.targets, predictor.plan))
            facts["reading"][name] = reading_facts(reading, config)
            say(f"reading: {cut_off(facts['reading'][name])}")
    return facts


def _fit_linear(config: Config, dataset: Dataset, run: Run, say: Say) -> dict[str, Any]:
    """Fit the linear model as the run's model and score dev and test."""
    model, scores, seconds = _linear(config, dataset, say)
    model.save(run.model)
    for name, found in scores.items():
        write_scores(run.scores, name, found)
    return {
        "samples_per_second": round(len(dataset.splits["train"]) / seconds, 2),
        "peak_memory_gb": round(process_memory_gb(), 3),
        "train_seconds": round(seconds, 1),
        "manifest": {"encoder": {"name": "linear"}, "plan": "fp32", "plan_reason": "the linear model has one"},
    }


def _linear(config: Config, dataset: Dataset, say: Say) -> tuple[LinearModel, dict[str, Scores], float]:
    """Fit the linear model and score dev and test; return both and the seconds of the fit."""
    from tinyhat.evaluate.linear import fit_linear

    split = dataset.splits["train"]
    say(f"linear: TF-IDF and one layer over {len(dataset.labels)} labels, {len(split)} documents")
    begin = time.perf_counter()
    model = fit_linear(split.texts, split.pairs, split.targets, split.weights, config.train.seed)
    seconds = time.perf_counter() - begin
    parts = {name: dataset.splits[name] for name in SHOWN if name in dataset.splits}
    return model, {n: Scores(p.ids, model.logits(p.texts, p.pairs), p.targets) for n, p in parts.items()}, seconds


def _baseline(config: Config, dataset: Dataset, run: Run, say: Say) -> dict[str, Any]:
    """Fit the linear baseline and measure it as the encoder will be; kept in baseline.json for a resumed run."""
    path = run.path / "baseline.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        return found
    _, scores, seconds = _linear(config, dataset, say)
    rule = fit_rule(scores["dev"], config.tune, dataset.labels.unseen.tolist())
    result = {n: measure(s, rule, n, dataset.labels, config) for n, s in scores.items()}
    metrics = result[main_split(scores)] | {"train_seconds": round(seconds, 1), "splits": result}
    write_json(path, metrics)
    say(f"baseline: {headline(metrics)} ({metrics['split']}, {seconds:.0f} s)")
    return metrics


def cut_off(facts: dict[str, Any]) -> str:
    """Return one sentence on what truncation left unread, from `reading_facts`."""
    if not facts["documents_cut"]:
        return f"all {facts['documents']} documents were read whole ({facts['max_tokens']} tokens at most)"
    unread = 1 - facts["tokens_read"] / facts["tokens_total"]
    return (
        f"{facts['documents_cut']} of {facts['documents']} documents are longer than {facts['max_tokens']} tokens; "
        f"{100 * unread:.1f}% of all tokens were cut off"
    )


def reading_facts(reading: Reading, config: Config) -> dict[str, Any]:
    """Return what truncation left unread: counts of documents and tokens, and a histogram of document lengths."""
    total: IntArray = reading.tokens_total
    top = max(float(np.percentile(total, 99)), 16.0) if len(total) else 16.0
    counts, edges = np.histogram(np.minimum(total, top), bins=40, range=(0, top))
    return {
        "max_tokens": config.reading.max_tokens,
        "strategy": config.reading.strategy,
        "documents": len(reading),
        "documents_cut": int((reading.tokens_read < total).sum()),
        "tokens_total": int(total.sum()),
        "tokens_read": int(reading.tokens_read.sum()),
        "histogram": {"edges": edges.round(1).tolist(), "counts": counts.tolist()},
    }
