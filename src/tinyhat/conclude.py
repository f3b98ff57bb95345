"""From saved scores to a conclusion: fit the rule, write the decision, measure, report. No weights are touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.config import Config
from tinyhat.data.dataset import Split
from tinyhat.data.labels import LabelSpace
from tinyhat.decision import (
    VOTE_FILE,
    Decision,
    Rule,
    activate,
    activation_of,
    labels_sha256,
    read_decision,
    write_decision,
)
from tinyhat.evaluate.metrics import evaluate_scores
from tinyhat.evaluate.scores import read_scores
from tinyhat.run import Run, file_sha256, read_json, write_json
from tinyhat.tune.decided import Csr, decide
from tinyhat.tune.rule import cross_fitted, fit_rule
from tinyhat.types import Scores

SHOWN = ("dev", "test")  # splits that are scored and kept


def decide_run(run: Run, config: Config, manifest: dict[str, Any]) -> Decision:
    """Fit the rule on the saved dev scores and write it into the model folder; weights are not touched."""
    scores = read_scores(run.scores, "dev")
    rule = fit_rule(scores, config.tune, labels_of(manifest).unseen.tolist())
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
        vote_sha256=file_sha256(run.model / VOTE_FILE) if (run.model / VOTE_FILE).exists() else None,
        activation=activation_of(manifest["task"]),
        rule=rule,
        reading=config.reading.model_dump(mode="json"),
        plan=plan,
        fitted_on=fitted_on | {"data_sha256": manifest["data"]["sha256"]},
    )
    write_decision(run.model, decision)
    if (run.model / "config.json").exists():
        _write_thresholds(run.model / "config.json", decision)
    return decision


def _write_thresholds(path: Path, decision: Decision) -> None:
    """Keep config.json in step with the rule: ``thresholds`` as probabilities (null: never), or ``top_k``."""
    tree = read_json(path)
    tree.pop("thresholds", None)
    tree.pop("top_k", None)
    if decision.rule.kind in ("thresholds", "global"):
        row = decision.rule.threshold_row(len(decision.labels))
        probabilities = activate(np.where(np.isfinite(row), row, 0)[None, :], decision.activation)[0]
        tree["thresholds"] = [float(p) if np.isfinite(t) else None for p, t in zip(probabilities, row, strict=True)]
    elif decision.rule.kind == "top_k":
        tree["top_k"] = decision.rule.k
    write_json(path, tree)


def measure_run(run: Run, config: Config, manifest: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Measure every saved split and write metrics.json: the main split's numbers on top, all under ``splits``."""
    decision = read_decision(run.model)
    labels = labels_of(manifest)
    names = [n for n in SHOWN if (run.scores / f"{n}.safetensors").exists()]
    splits = {name: measure(read_scores(run.scores, name), decision, name, labels, config) for name in names}
    main = main_split(splits)
    reading = facts.pop("reading", {}) or {}
    metrics = splits[main] | facts | {"reading": reading.get(main), "splits": splits}
    write_json(run.metrics, metrics)
    return metrics


def measure(
    scores: Scores, decision: Decision | Rule, split: str, labels: LabelSpace, config: Config, saved: bool = True
) -> dict[str, Any]:
    """Return the metrics of one split.

    The split that the rule was fitted on is decided by cross-fitting, so that its figure is not the fitted one.

    Args:
        scores: of the split, with targets.
        decision: the saved decision, or a rule just fitted on dev.
        split: its name.
        labels: the label space, for names and bands.
        config: tune and evaluate sections.
        saved: the scores are the run's own (False: of other documents, never fitted on).
    """
    assert scores.targets is not None
    rule = decision.rule if isinstance(decision, Decision) else decision
    fitted_on = decision.fitted_on if isinstance(decision, Decision) else {"split": "dev"}
    decided: Csr | None = None
    summary: dict[str, Any] | None = None
    if scores.targets.task != "regression":
        if saved and fitted_on.get("split") == split and "data" not in fitted_on:
            decided, summary = cross_fitted(scores, config.tune, config.train.seed, rule.never)
        else:
            decided = decide(rule, scores.logits)
    metrics = evaluate_scores(scores, decided, labels.train_counts, config.evaluate, config.train.seed, labels.names)
    return metrics | {"split": split, "task": scores.targets.task, "tuning": summary}


def labels_of(manifest: dict[str, Any]) -> LabelSpace:
    """Return the label space of a run, from its manifest."""
    return LabelSpace(tuple(manifest["labels"]), np.array(manifest["train_counts"], dtype=np.int64))


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
    """Write report.html and the model card.

    Args:
        run: the run folder.
        manifest: its manifest.
        metrics: as metrics.json.
        split: the scored documents; their snippets are kept beside the scores, so that a later `tune` (None) has them.
    """
    from tinyhat.report.card import write_card
    from tinyhat.report.mistakes import snippets
    from tinyhat.report.page import build_report

    kept = run.scores / f"{metrics['split']}.snippets.json"
    if split is not None:
        write_json(kept, snippets(split))
    texts = read_json(kept) if kept.exists() else {}
    scores = read_scores(run.scores, metrics["split"])
    decided = None
    if metrics["task"] != "regression":
        decided = decide(read_decision(run.model).rule, scores.logits)
    labels = labels_of(manifest)
    descriptors = manifest["data"].get("descriptors") or {}
    names = tuple(f"{descriptors[name]} ({name})" if name in descriptors else name for name in labels.names)
    build_report(run, manifest["data"]["name"], replace(labels, names=names), scores, decided, texts)
    write_card(run)
