"""A run folder made up in memory: metrics, log, manifest and decision laid out as the pipeline writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.config import Config, EvaluateConfig
from tinyhat.data.dataset import Split
from tinyhat.data.labels import LabelSpace
from tinyhat.decision import Decision, Rule, activation_of, labels_sha256, write_decision
from tinyhat.evaluate.metrics import evaluate_scores
from tinyhat.run import Run, write_json
from tinyhat.tune.decided import Csr, decide
from tinyhat.types import Scores, Targets, Task

WORDS = [
    "council",
    "regulation",
    "decision",
    "market",
    "fishery",
    "quota",
    "licence",
    "tariff",
    "import",
    "olive",
    "wheat",
    "export",
    "subsidy",
    "vessel",
    "port",
    "directive",
    "member",
    "state",
    "authority",
    "notice",
    "annex",
    "article",
    "paragraph",
    "procedure",
    "committee",
    "opinion",
    "whereas",
    "amended",
]


@dataclass(frozen=True)
class SyntheticRun:
    """What build_report takes."""

    run: Run
    labels: LabelSpace
    scores: Scores
    decided: Csr | None
    split: Split


def synthetic_run(
    folder: Path,
    task: Task,
    documents: int = 200,
    width: int = 12,
    steps: int = 120,
    split: str = "dev",
    names: tuple[str, ...] | None = None,
    bootstrap: int = 20,
) -> SyntheticRun:
    """Make up a run of `documents` evaluated documents and `width` labels (or targets) in `folder`."""
    rng = np.random.default_rng(0)
    names = names or tuple(
        f"{WORDS[j % len(WORDS)]} {j}" if task != "regression" else f"target {j}" for j in range(width)
    )
    counts = (3000 / np.arange(1, width + 1) ** 0.9).astype(np.int64)
    counts[-max(1, width // 20) :] = 0  # labels that training never saw
    labels = LabelSpace(names, counts if task != "regression" else np.full(width, 1000))
    targets, logits, weak = _scores(rng, task, documents, width, counts)
    ids = [f"doc-{i:05d}" for i in range(documents)]
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 300))).capitalize() + "." for _ in ids]
    scores = Scores(ids, logits, targets, "bf16")
    rule = _rule(task, width)
    decided = None if task == "regression" else decide(rule, logits)
    config = Config()
    measured = _metrics(scores, decided, Scores(ids, weak, targets), rule, labels, split, bootstrap)
    run = Run(folder)
    run.model.mkdir(parents=True)
    write_json(run.model / "config.json", {"model_type": "bert"})
    (run.model / "model.safetensors").write_bytes(b"weights")
    write_json(run.metrics, measured)
    write_json(run.manifest, _manifest(config, task, labels, documents))
    run.log.write_text("".join(json.dumps(line) + "\n" for line in _log(rng, steps)))
    write_decision(
        run.model,
        Decision(
            task=task, labels=names, labels_sha256=labels_sha256(names), weights_sha256="0" * 64,
            unseen=tuple(int(j) for j in labels.unseen), activation=activation_of(task), rule=rule,
            reading=config.reading.model_dump(mode="json"), plan="bf16",
            fitted_on={"split": "dev", "documents": documents, "data_sha256": "a" * 64},
        ),
    )  # fmt: skip
    return SyntheticRun(run, labels, scores, decided, Split(split, ids, texts, targets))


def _scores(
    rng: np.random.Generator, task: Task, documents: int, width: int, counts: np.ndarray
) -> tuple[Targets, np.ndarray, np.ndarray]:
    if task == "regression":
        true = rng.normal(3, 0.5, (documents, width)).astype(np.float32)
        noise = rng.normal(0, 0.3, true.shape)
        logits = 3 + 0.7 * (true - 3) + noise
        return Targets(task, width, true), logits.astype(np.float32), (3 + 0.4 * (true - 3) + noise).astype(np.float32)
    prior = (counts + 0.5) / (counts + 0.5).sum()
    if task == "single":
        flat = prior**0.5 / (prior**0.5).sum()
        values = rng.choice(width, documents, p=flat).astype(np.int64)
        targets = Targets(task, width, values)
    else:
        rows = [np.unique(rng.choice(width, rng.integers(1, 1 + min(9, width)), p=prior)) for _ in range(documents)]
        indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        targets = Targets(task, width, np.concatenate(rows).astype(np.int64), indptr)
    signal = np.log1p(counts) * 0.8 + 1.0
    true = targets.dense()
    base = (np.log(prior) if task == "multi" else -1.0) + rng.normal(0, 1.3, true.shape)
    return targets, (base + signal * true).astype(np.float32), (base + 0.8 * signal * true).astype(np.float32)


def _rule(task: Task, width: int) -> Rule:
    if task == "single":
        return Rule(kind="argmax")
    if task == "regression":
        return Rule(kind="value")
    return Rule(kind="thresholds", thresholds=tuple(0.1 * (j % 7) - 0.2 for j in range(width)), never=(width - 1,))


def _metrics(
    scores: Scores, decided: Csr | None, weak: Scores, rule: Rule, labels: LabelSpace, split: str, bootstrap: int
) -> dict[str, Any]:
    config = EvaluateConfig(bootstrap=bootstrap)
    counts = None if decided is None else labels.train_counts
    own = evaluate_scores(scores, decided, counts, config, 0)
    base = evaluate_scores(weak, None if decided is None else decide(rule, weak.logits), counts, config, 0)
    assert scores.targets is not None
    lengths = np.random.default_rng(1).lognormal(5.8, 0.9, 2000)
    top = float(np.percentile(lengths, 99))
    histogram, edges = np.histogram(np.minimum(lengths, top), bins=40, range=(0, top))
    own |= {"task": scores.targets.task, "split": split}
    tuning = {"rule": "thresholds", "folds": 5, "micro_f1": 0.6} if scores.targets.task == "multi" else None
    return own | {
        "tuning": tuning,
        "baseline": base,
        "splits": {"dev": own, "test": own},
        "samples_per_second": 13.8, "tokens_per_second": 5210.0, "peak_memory_gb": 3.1, "train_seconds": 2592.0,
        "steps": 1407, "best_step": 1407,
        "reading": {
            "max_tokens": 512, "strategy": "head", "documents": 2000, "documents_cut": int((lengths > 512).sum()),
            "tokens_total": int(lengths.sum()), "tokens_read": int(np.minimum(lengths, 512).sum()),
            "histogram": {"edges": edges.round(1).tolist(), "counts": histogram.tolist()},
        },
        "notes": ["12 documents of dev also occur in train."],
    }  # fmt: skip


def _manifest(config: Config, task: Task, labels: LabelSpace, documents: int) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "environment": {
            "python": "3.11.9", "packages": {"tinyhat": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "system": "Linux", "processor": "a processor", "cores": 2, "started": "2026-01-02T03:04:05+0000",
            "command": ["tinyhat", "train", "/home/somebody/laws"],
        },
        "task": task,
        "data": {
            "name": "/home/somebody/laws", "sha256": "ab" * 32, "splits": {"train": 45000, "dev": documents},
            "notes": ["there is no test split in /home/somebody/laws; numbers are from dev."],
        },
        "labels": list(labels.names), "train_counts": labels.train_counts.tolist(),
        "encoder": {"name": "minilm", "parameters": 22_713_216, "packed": True, "reason": "logits equal one by one"},
        "plan": "bf16", "plan_reason": "the processor computes bf16 in matrix units", "seconds": 3180.4,
    }  # fmt: skip


def _log(rng: np.random.Generator, steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        share = step / steps
        lines.append({
            "step": step, "epoch": share, "loss": float(18 * np.exp(-4 * share) + 7 + rng.normal(0, 0.5)),
            "gradient_norm": float(rng.lognormal(0.3, 0.3)), "rate": 3e-4 * min(share / 0.06, (1 - share) / 0.94),
            "documents_per_second": 13.8, "tokens_per_second": 5200.0, "memory_gb": 3.1, "seconds": 2.3,
        })  # fmt: skip
        if step % max(1, steps // 4) == 0:
            lines.append({"step": step, "evaluation": {"metric": "micro_f1", "value": 0.66 - 0.4 * np.exp(-4 * share)}})
    return lines
