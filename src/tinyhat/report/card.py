"""The model card: README.md of the model folder, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tinyhat.decision import FILE, Decision
from tinyhat.errors import UserError
from tinyhat.report.numbers import main_rows, readable, score_row, show, show_interval, verdict
from tinyhat.run import Run, read_json, write_bytes

HUB_NAMES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
TAGS = {"single": "single-label", "multi": "multi-label", "regression": "regression"}
RANKING = ("precision_at_1", "precision_at_5", "rp_at_5", "ndcg_at_5")


def write_card(run: Run) -> None:
    """Write the model card to ``run.model/README.md`` from the run's metrics, manifest and decision.

    The format is the hub's (https://huggingface.co/docs/hub/model-cards): YAML between lines of ``---`` with library,
    pipeline tag, base model and results as ``model-index``, then Markdown. No path of this machine goes in.
    """
    metrics = read_json(run.metrics) if run.metrics.exists() else {}
    manifest = read_json(run.manifest) if run.manifest.exists() else {}
    decision = _decision(run)
    task = str(metrics.get("task") or manifest.get("task") or "multi")
    linear = not (run.model / "config.json").exists()
    front = yaml.safe_dump(_front(run, metrics, manifest, task, linear), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {run.path.resolve().name}",
        _about(metrics, manifest, task, linear),
        _use(task, linear, decision),
        _numbers(metrics),
        _rule(decision, task),
        _made(manifest, metrics, decision, linear),
        _limits(metrics, manifest, decision),
    ]
    text = f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    write_bytes(run.model / "README.md", text.encode("utf-8", "replace"))


def _decision(run: Run) -> Decision | None:
    try:
        return Decision.model_validate(read_json(run.model / FILE))
    except (UserError, ValidationError):
        return None


def _front(
    run: Run, metrics: Mapping[str, Any], manifest: Mapping[str, Any], task: str, linear: bool
) -> dict[str, Any]:
    """Return the metadata of the card. A metric in `model-index` carries the hub's `type` and our readable name."""
    rows = [*main_rows(metrics), *(r for key in RANKING if (r := score_row(metrics, key)) is not None)]
    front: dict[str, Any] = {
        "library_name": "tinyhat" if linear else "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["tinyhat", "text-classification", TAGS.get(task, task)],
    }
    base = None if linear else _hub_name(manifest)
    if base:
        front["base_model"] = base
    if rows:
        front["metrics"] = [row.metric for row in rows]
        dataset = _dataset(manifest)
        front["model-index"] = [
            {
                "name": run.path.resolve().name,
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": dataset, "type": _slug(dataset), "split": metrics.get("split") or "dev"},
                        "metrics": [{"type": r.metric, "value": round(r.value, 6), "name": r.name} for r in rows],
                    }
                ],
            }
        ]
    return front


def _hub_name(manifest: Mapping[str, Any]) -> str | None:
    """Return the base model's name on the hub, or None where it came from a folder of this machine."""
    name = str(((manifest.get("config") or {}).get("encoder") or {}).get("model") or "")
    if name in HUB_NAMES:
        return HUB_NAMES[name]
    return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) and not Path(name).exists() else None


def _dataset(manifest: Mapping[str, Any]) -> str:
    """Return the data's name; of a path only the last part, because the rest speaks of this machine."""
    name = str((manifest.get("data") or {}).get("name") or "")
    if Path(name).exists():
        name = Path(name).name
    return _no_paths(name) or "unnamed data"


def _no_paths(text: str) -> str:
    """Return `text` with absolute and dotted paths cut to their last part: a card may be published."""
    return re.sub(r"(?<![\w/:.])(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\][\w.@+~-]+)*[/\\]([\w.@+~-]+)/?", r"\1", text)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_./-]+", "-", name).strip("-") or "data"


def _about(metrics: Mapping[str, Any], manifest: Mapping[str, Any], task: str, linear: bool) -> str:
    labels = manifest.get("labels") or []
    width = f"{len(labels):,} " if labels else ""
    does = {
        "single": f"gives a document one of {width}labels",
        "multi": f"gives a document any number of {width}labels",
        "regression": f"gives a document {width}{'number' if len(labels) == 1 else 'numbers'}",
    }.get(task, "classifies documents")
    kind = "TF-IDF and one linear layer" if linear else "A Hugging Face encoder with a classifier on top"
    base = None if linear else _hub_name(manifest)
    start = f", fine-tuned from [{base}](https://huggingface.co/{base})" if base else ""
    trained = "" if not manifest.get("data") else f" It was trained on {_dataset(manifest)}."
    return f"{kind}{start}: it {does}.{trained}\n\n{verdict(metrics)}"


def _use(task: str, linear: bool, decision: Decision | None) -> str:
    """Return how to load the model: in tinyhat with its decision, in transformers with its probabilities."""
    ours = (
        "## Use\n\nWith tinyhat, which reads documents, applies the decision and names the labels as in training:\n\n"
        '```python\nimport tinyhat\n\nclassifier = tinyhat.load("path/to/this/folder")\n'
        'classifier.predict(["The text of a document."])\n```'
    )
    if linear:
        return ours + "\n\nThe linear model needs no torch; transformers cannot load it."
    function = {"single": "softmax", "multi": "sigmoid", "regression": "none"}.get(task, "sigmoid")
    plain = (
        "\n\nWith plain transformers, for the same "
        + ("values" if task == "regression" else "probabilities")
        + ':\n\n```python\nfrom transformers import pipeline\n\nclassify = pipeline("text-classification", '
        f'model="path/to/this/folder", top_k=None, function_to_apply="{function}")\n'
        'classify("The text of a document.", truncation=True)\n```'
    )
    if decision is not None and decision.reading.get("strategy", "head") != "head":
        plain += (
            f"\n\nDocuments longer than {decision.reading.get('max_tokens')} tokens are read by the strategy "
            f"`{decision.reading['strategy']}` here; transformers reads their beginning, so their results differ."
        )
    if decision is not None and decision.rule.kind in ("thresholds", "global"):
        plain += (
            "\n\n`config.json` holds the threshold of each label under `thresholds`, as probabilities in label order."
        )
    return ours + plain


def _numbers(metrics: Mapping[str, Any]) -> str:
    rows = [*main_rows(metrics), *(r for key in RANKING if (r := score_row(metrics, key)) is not None)]
    if not rows:
        return ""
    based = any(row.base is not None for row in rows)
    split, documents = metrics.get("split") or "dev", metrics.get("documents")
    count = f", {documents:,} documents" if isinstance(documents, int) else ""
    text = f"## Numbers\n\nOn the {split} split{count}"
    text += "; the linear baseline is TF-IDF and one linear layer on the same documents." if based else "."
    if split == "dev" and (metrics.get("tuning") or {}).get("folds"):
        text += f" Decisions are cross-fitted over {metrics['tuning']['folds']} folds."
    header = "| metric | this model | 95% interval |" + (" linear baseline |" if based else "")
    lines = [header, "|---|---:|---|" + ("---:|" if based else "")]
    for row in rows:
        line = f"| {row.name} | {show(row.value)} | {show_interval(row.interval)} |"
        lines.append(line + (f" {show(row.base)} |" if based else ""))
    for band, found in (metrics.get("bands") or {}).items():
        # a band without a true label in the split has no F1 to speak of
        if found and found.get("positives") and found.get("micro_f1") is not None:
            name = f"{readable('micro_f1')}, {band.replace('_', '-')} labels ({found.get('labels', 0):,})"
            base = ((metrics.get("baseline") or {}).get("bands") or {}).get(band) or {}
            line = f"| {name} | {show(found['micro_f1'])} | |"
            lines.append(line + (f" {show(base.get('micro_f1'))} |" if based else ""))
    return text + "\n\n" + "\n".join(lines)


def _rule(decision: Decision | None, task: str) -> str:
    if decision is None:
        return ""
    rule = decision.rule
    never = len(rule.never)
    said = {
        "argmax": "The label with the highest score is decided.",
        "thresholds": "Each label is decided where its logit exceeds the label's own threshold"
        + (f"; {never:,} {'label is' if never == 1 else 'labels are'} never decided." if never else "."),
        "global": f"Each label is decided where its logit exceeds {show(rule.threshold)}.",
        "top_k": f"The {rule.k} labels with the highest scores are decided.",
        "value": "The output is the number itself, in the unit of the training data.",
    }[rule.kind]
    fitted = decision.fitted_on
    source = ""
    if rule.kind in ("thresholds", "global") and fitted.get("split"):
        source = f" Fitted on {fitted['split']} ({show(fitted.get('documents'))} documents)."
    return (
        f"## Decision\n\n{said}{source} `decision.json` holds the rule with the label order, and tinyhat refuses "
        f"weights or labels it was not made for. It holds for the numeric plan `{decision.plan}`: tune again "
        "after quantising."
    )


def _made(manifest: Mapping[str, Any], metrics: Mapping[str, Any], decision: Decision | None, linear: bool) -> str:
    """Return the facts of the training: data with its hash, reading, seeds and versions."""
    data, config = manifest.get("data") or {}, manifest.get("config") or {}
    # the linear model reads documents whole and takes no steps
    reading = {} if linear else decision.reading if decision else config.get("reading") or {}
    train = {} if linear else config.get("train") or {}
    splits = ", ".join(f"{name} {n:,}" for name, n in (data.get("splits") or {}).items() if isinstance(n, int))
    packages = (manifest.get("environment") or {}).get("packages") or {}
    facts = {
        "Data": f"{_dataset(manifest)} ({splits})" if splits else "",
        "Data sha256": f"`{data['sha256']}`" if data.get("sha256") else "",
        "Reading": f"{show(reading.get('max_tokens'))} tokens, strategy `{reading.get('strategy')}`" if reading else "",
        "Numeric plan": f"`{manifest['plan']}`" if manifest.get("plan") else "",
        "Batch and seed": f"{train['batch_size']} documents a step, seed {train.get('seed')}" if train else "",
        "Steps": show(metrics.get("steps")) if metrics.get("steps") else "",
        "Versions": ", ".join(f"{n} {packages[n]}" for n in ("tinyhat", "torch", "transformers") if packages.get(n)),
    }
    lines = [f"* {name}: {value}" for name, value in facts.items() if value]
    lines += [f"* Note: {_no_paths(str(note))}" for note in data.get("notes") or []]
    return "## How it was made\n\n" + "\n".join(lines) if lines else ""


def _limits(metrics: Mapping[str, Any], manifest: Mapping[str, Any], decision: Decision | None) -> str:
    """Return what the model is known not to do, from measured facts only."""
    found = []
    if decision is not None and decision.unseen and decision.task != "regression":
        found.append(f"{len(decision.unseen):,} of {len(decision.labels):,} labels had no training document.")
    few = (metrics.get("bands") or {}).get("few") or {}
    if few.get("labels") and few.get("macro_f1") is not None:
        found.append(
            f"Macro-F1 over the {few['labels']:,} labels with few training documents is {show(few['macro_f1'])}."
        )
    reading = metrics.get("reading") or {}
    if reading.get("documents") and reading.get("documents_cut"):
        share = reading["documents_cut"] / reading["documents"]
        found.append(f"{share:.1%} of the documents were longer than {show(reading.get('max_tokens'))} tokens and cut.")
    if metrics.get("split") == "dev":
        found.append("The numbers are from the dev split, on which training also chose its best step.")
    found.append("Documents of another kind than those it was trained on were not measured.")
    return "## Limits\n\n" + "\n".join(f"* {line}" for line in found)
