"""The story in one screen: read, train, score, tune, evaluate, report. Each step leaves its result in the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyhat.config import Config
from tinyhat.data.dataset import Dataset, Split
from tinyhat.data.labels import LabelSpace
from tinyhat.decision import Decision, Rule, activate, activation_of, labels_sha256, read_decision, write_decision
from tinyhat.errors import UserError
from tinyhat.evaluate.metrics import evaluate_scores
from tinyhat.evaluate.scores import read_scores, write_scores
from tinyhat.run import Run, environment, file_sha256, open_run, read_json, write_json
from tinyhat.tune.decided import Csr, decide
from tinyhat.tune.rule import cross_fitted, fit_rule
from tinyhat.types import IntArray, Scores

if TYPE_CHECKING:
    from tinyhat.data.reading import Reading

Say = Callable[[str], None]
SHOWN = ("dev", "test")  # splits that are scored and kept


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
    run = open_run(Path(out), config.model_dump(mode="json"), resume)
    begin = time.monotonic()
    manifest = _begin_manifest(config, dataset, run, resume)
    for note in dataset.notes:
        say(f"data: {note}")
    baseline = None
    if config.evaluate.baseline and config.encoder.model != "linear":
        baseline = _baseline(config, dataset, run, say)
    facts = _fit_linear(config, dataset, run, say) if config.encoder.model == "linear" else None
    if facts is None:
        facts = _fit_encoder(config, dataset, run, resume, say)
    manifest |= facts.pop("manifest")
    decide_run(run, config, manifest)
    manifest["seconds"] = round(time.monotonic() - begin, 1)
    write_json(run.manifest, manifest)
    metrics = measure_run(run, config, manifest, facts | {"baseline": baseline, "notes": list(dataset.notes)})
    report_run(run, manifest, metrics, dataset.splits[metrics["split"]])
    return run


def _begin_manifest(config: Config, dataset: Dataset, run: Run, resume: bool) -> dict[str, Any]:
    """Write the manifest that makes the folder a run; on resume, check that the data is the same."""
    if resume:
        before = run.read_manifest()["data"]["sha256"]
        if before != dataset.sha256:
            raise UserError(f"--resume: the documents in {config.data.path} have changed since {run.path} began")
    manifest: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "task": dataset.task,
        "data": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "splits": {name: len(split) for name, split in dataset.splits.items()},
            "notes": list(dataset.notes),
        },
        "labels": list(dataset.labels.names),
        "train_counts": dataset.labels.train_counts.tolist(),
    }
    write_json(run.manifest, manifest)
    return manifest


def _fit_encoder(config: Config, dataset: Dataset, run: Run, resume: bool, say: Say) -> dict[str, Any]:
    """Train the encoder and score dev and test; return facts for metrics and manifest."""
    from tinyhat.train.classifier import train_classifier

    trained = train_classifier(config, dataset, run, resume, say)
    predictor, outcome = trained.predictor, trained.outcome
    facts: dict[str, Any] = {
        "samples_per_second": outcome.documents_per_second,
        "tokens_per_second": outcome.tokens_per_second,
        "peak_memory_gb": outcome.peak_memory_gb,
        "train_seconds": outcome.seconds,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped_early,
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
    return facts


def _fit_linear(config: Config, dataset: Dataset, run: Run, say: Say) -> dict[str, Any]:
    """Fit the linear model as the run's model and score dev and test."""
    from tinyhat.evaluate.linear import fit_linear

    split = dataset.splits["train"]
    say(f"linear: TF-IDF and one layer over {len(dataset.labels)} labels, {len(split)} documents")
    begin = time.perf_counter()
    model = fit_linear(split.texts, split.pairs, split.targets, split.weights, config.train.seed)
    seconds = time.perf_counter() - begin
    model.save(run.model)
    for name in SHOWN:
        if name in dataset.splits:
            part = dataset.splits[name]
            write_scores(run.scores, name, Scores(part.ids, model.logits(part.texts, part.pairs), part.targets, "fp32"))
    return {
        "samples_per_second": round(len(split) / seconds, 2),
        "train_seconds": round(seconds, 1),
        "manifest": {"encoder": {"name": "linear"}, "plan": "fp32", "plan_reason": "the linear model has one"},
    }


def _baseline(config: Config, dataset: Dataset, run: Run, say: Say) -> dict[str, Any]:
    """Fit the linear baseline and measure it as the encoder will be; kept in baseline.json for a resumed run."""
    from tinyhat.evaluate.linear import fit_linear

    path = run.path / "baseline.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        return found
    split = dataset.splits["train"]
    say(f"baseline: TF-IDF and one linear layer, {len(split)} documents")
    begin = time.perf_counter()
    model = fit_linear(split.texts, split.pairs, split.targets, split.weights, config.train.seed)
    seconds = time.perf_counter() - begin
    plain = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"bootstrap": 0})})
    scores = {
        name: Scores(part.ids, model.logits(part.texts, part.pairs), part.targets)
        for name, part in dataset.splits.items()
        if name in SHOWN
    }
    rule = fit_rule(scores["dev"], config.tune)
    result = {n: measure(s, rule, n, dataset.labels.train_counts, plain) for n, s in scores.items()}
    metrics = result[main_split(scores)] | {"train_seconds": round(seconds, 1), "splits": result}
    write_json(path, metrics)
    say(f"baseline: {headline(metrics)} ({metrics['split']}, {seconds:.0f} s)")
    return metrics


def decide_run(run: Run, config: Config, manifest: dict[str, Any]) -> Decision:
    """Fit the rule on the saved dev scores and write it into the model folder; weights are not touched."""
    scores = read_scores(run.scores, "dev")
    rule = fit_rule(scores, config.tune)
    return write_rule(run, config, manifest, rule, {"split": "dev", "documents": len(scores.ids)}, scores.plan)


def write_rule(
    run: Run, config: Config, manifest: dict[str, Any], rule: Rule, fitted_on: dict[str, Any], plan: str
) -> Decision:
    """Write decision.json, and the thresholds into config.json for people who load the model without tinyhat."""
    labels = tuple(manifest["labels"])
    counts = np.array(manifest["train_counts"])
    decision = Decision(
        task=manifest["task"],
        labels=labels,
        labels_sha256=labels_sha256(labels),
        unseen=tuple(int(j) for j in np.flatnonzero(counts == 0)),
        weights_sha256=file_sha256(run.model / "model.safetensors"),
        activation=activation_of(manifest["task"]),
        rule=rule,
        reading=config.reading.model_dump(mode="json"),
        plan=plan,
        fitted_on=fitted_on | {"data_sha256": manifest["data"]["sha256"]},
    )
    write_decision(run.model, decision)
    if rule.kind in ("thresholds", "global") and (run.model / "config.json").exists():
        row = decision.threshold_row()
        probabilities = activate(np.where(np.isfinite(row), row, 0)[None, :], decision.activation)[0]
        kept = [float(p) if np.isfinite(t) else None for p, t in zip(probabilities, row, strict=True)]
        _write_thresholds(run.model / "config.json", kept)
    return decision


def _write_thresholds(path: Path, thresholds: list[float | None]) -> None:
    tree = read_json(path)
    tree["thresholds"] = thresholds
    write_json(path, tree)


def measure_run(run: Run, config: Config, manifest: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Measure every saved split and write metrics.json: the main split's numbers on top, all under ``splits``."""
    rule = read_decision(run.model).rule
    counts = np.array(manifest["train_counts"])
    names = [n for n in SHOWN if (run.scores / f"{n}.safetensors").exists()]
    splits = {name: measure(read_scores(run.scores, name), rule, name, counts, config) for name in names}
    main = main_split(splits)
    reading = facts.pop("reading", {}) or {}
    metrics = splits[main] | facts | {"reading": reading.get(main), "splits": splits}
    write_json(run.metrics, metrics)
    return metrics


def measure(scores: Scores, rule: Rule, split: str, train_counts: IntArray, config: Config) -> dict[str, Any]:
    """Return the metrics of one split; dev is decided by cross-fitting, so that its figure is not the fitted one."""
    assert scores.targets is not None
    decided: Csr | None = None
    summary: dict[str, Any] | None = None
    if scores.targets.task != "regression":
        if split == "dev":
            decided, summary = cross_fitted(scores, config.tune, config.train.seed)
        else:
            decided = decide(rule, scores.logits)
    metrics = evaluate_scores(scores, decided, train_counts, config.evaluate, config.train.seed)
    return metrics | {"split": split, "task": scores.targets.task, "tuning": summary}


def main_split(splits: dict[str, Any]) -> str:
    """Return the split whose numbers a run is judged by: test where it is labelled, else dev."""
    return "test" if "test" in splits else "dev"


def headline(metrics: dict[str, Any]) -> str:
    """Return the two or three numbers people look at first."""
    wanted = {
        "multi": ("micro_f1", "macro_f1", "precision_at_1", "rp_at_5"),
        "single": ("accuracy", "macro_f1"),
        "regression": ("pearson", "mae"),
    }
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in wanted[metrics["task"]] if metrics.get(name) is not None)


def report_run(run: Run, manifest: dict[str, Any], metrics: dict[str, Any], split: Split | None) -> None:
    """Write report.html and the model card."""
    from tinyhat.report.card import write_card
    from tinyhat.report.page import build_report

    scores = read_scores(run.scores, metrics["split"])
    decided = None
    if metrics["task"] != "regression":
        decided = decide(read_decision(run.model).rule, scores.logits)
    labels = LabelSpace(tuple(manifest["labels"]), np.array(manifest["train_counts"]))
    build_report(run, manifest["data"]["name"], labels, scores, decided, split)
    write_card(run)


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
