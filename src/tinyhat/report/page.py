"""report.html: one self-contained page of a run. This file gathers what the page says; page.html lays it out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from tinyhat.config import Config
from tinyhat.data.labels import LabelSpace
from tinyhat.decision import FILE, Decision, activate
from tinyhat.errors import UserError
from tinyhat.evaluate.bootstrap import without_width
from tinyhat.evaluate.per_label import LabelRow, label_table, worst_and_best
from tinyhat.evaluate.single import confusion
from tinyhat.report import plots
from tinyhat.report.figures import label_plots, regression_plots, run_plots
from tinyhat.report.forgetting import forgetting_section
from tinyhat.report.mistakes import multi_mistakes, regression_mistakes, single_mistakes
from tinyhat.report.numbers import (
    main_rows,
    other_rows,
    ranking_grid,
    readable,
    score_row,
    show,
    show_interval,
    show_seconds,
    verdict,
)  # fmt: skip
from tinyhat.run import Run, read_json, read_log, write_bytes
from tinyhat.tune.decided import Csr
from tinyhat.types import Scores

WHOLE_TABLE = 40  # labels up to which every label has its row
SHOWN_LABELS = 15  # otherwise: so many of the worst, so many of the best
SHOWN_PAIRS = 12
TASKS = {"single": "one label a document", "multi": "any number of labels a document", "regression": "numbers"}
BANDS = {"frequent": "frequent", "few": "few", "zero_shot": "zero-shot"}


def build_report(
    run: Run, dataset_name: str, labels: LabelSpace, scores: Scores, decided: Csr | None, texts: Mapping[str, str]
) -> Path:
    """Write `run.report` from the run folder's metrics, log and manifest and the scores of the main split.

    What a file lacks is left out of the page; without matplotlib a sentence stands where the plots would be.

    Args:
        run: the run folder.
        dataset_name: how the user called the data.
        labels: the L labels, or the K regression targets.
        scores: of the split that metrics.json speaks of, logits [N, L] or [N, K].
        decided: bool CSR [N, L], what the decision chose; None for regression.
        texts: document id to snippet (`mistakes.snippets`); what is missing is left out.

    Returns:
        The path of the page.
    """
    metrics = read_json(run.metrics) if run.metrics.exists() else {}
    manifest = read_json(run.manifest) if run.manifest.exists() else {}
    # where the true targets are known they say the task better than a file that may lack it
    metrics = metrics | ({} if scores.targets is None else {"task": scores.targets.task})
    decision = _decision(run)
    settings = Config().evaluate.model_dump() | ((manifest.get("config") or {}).get("evaluate") or {})
    drawn = plots.available()
    page: dict[str, Any] = {
        "header": _header(run, dataset_name, labels, metrics, manifest),
        "verdict": verdict(metrics),
        "without_width": without_width(metrics),
        "rows": main_rows(metrics),
        "ranking": ranking_grid(metrics),
        "others": other_rows(metrics),
        "splits": _splits(metrics),
        "per_target": _per_target(metrics, labels),
        "bands": _bands(metrics),
        "tuning": metrics.get("tuning") or {},
        "reading": _reading(metrics),
        "notes": _notes(metrics, manifest, labels),
        "details": _details(manifest, metrics),
        "drawn": drawn,
        "plots": run_plots(read_log(run.log), metrics) if drawn else {},
        "forgetting": forgetting_section(metrics, drawn),
        "frequent": int(settings["frequent"]),
        "threshold_kind": "value" if decision is None else decision.rule.kind,
    }
    if scores.targets is not None and len(scores.ids):
        task = scores.targets.task
        if task == "regression":
            page["mistakes"] = [("Largest errors", regression_mistakes(scores, labels, texts))]
            page["plots"] |= regression_plots(scores, labels) if drawn else {}
        elif decided is not None:
            page |= _labelled(scores, decided, labels, texts, decision, page["frequent"])
            if drawn:
                matrix = page.get("confusion", {}).get("matrix")
                page["plots"] |= label_plots(scores, labels, page["table"], matrix, metrics, page["frequent"])
    write_bytes(run.report, _render(page).encode("utf-8", "replace"))
    return run.report


def _render(page: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup, escape

    # autoescape: texts and label names of the data are written as text, whatever they hold
    environment = Environment(loader=PackageLoader("tinyhat.report", "."), autoescape=True, trim_blocks=True)
    environment.filters |= {
        "show": show, "interval": show_interval, "readable": readable, "seconds": show_seconds,
        "breakable": lambda name: escape(name).replace("_", Markup("_<wbr>")),
        "whole": lambda value: f"{value:,}" if isinstance(value, int) else "–",
    }  # fmt: skip
    return environment.get_template("page.html").render(page).lstrip()


def _decision(run: Run) -> Decision | None:
    try:
        return Decision.model_validate(read_json(run.model / FILE))
    except (UserError, ValidationError):
        return None  # the report shows thresholds where it can; refusing a bad decision is read_decision's work


def _header(
    run: Run, dataset_name: str, labels: LabelSpace, metrics: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the title and the facts under it, as (name, value) in reading order; unknown ones left out."""
    encoder = manifest.get("encoder") or {}
    config = manifest.get("config") or {}
    task = str(metrics.get("task") or manifest.get("task") or "")
    model = str(encoder.get("name") or (config.get("encoder") or {}).get("model") or "model")
    parameters = encoder.get("parameters")
    counts = (manifest.get("data") or {}).get("splits") or {}
    documents = ", ".join(f"{n:,} {name}" for name, n in counts.items() if isinstance(n, int))
    size = f"{len(labels):,} {'targets' if task == 'regression' else 'labels'}"
    packed = "" if encoder.get("packed") is None else "packed" if encoder["packed"] else "padded"
    rate = [
        f"{metrics[key]:{'.3g' if metrics[key] < 1000 else ',.0f'}} {word}"
        for key, word in _RATES.items()
        if metrics.get(key)
    ]
    facts = [
        ("task", f"{task}: {TASKS[task]}" if task in TASKS else task),
        ("model", f"{model}, {parameters / 1e6:,.1f} M parameters" if isinstance(parameters, int) else model),
        ("labels" if task != "regression" else "targets", size),
        ("documents", documents),
        ("numbers from", _source(metrics)),
        ("plan", " · ".join(str(p) for p in (manifest.get("plan"), packed) if p)),
        ("training", show_seconds(metrics["train_seconds"]) if metrics.get("train_seconds") else ""),
        ("speed", ", ".join(rate)),
        ("whole run", show_seconds(manifest["seconds"]) if manifest.get("seconds") else ""),
        ("begun", str((manifest.get("environment") or {}).get("started") or "")[:16].replace("T", " ")),
    ]
    return {
        "title": f"{model} on {dataset_name}", "run": run.path.name, "facts": [f for f in facts if f[1]],
        "split": metrics.get("split") or "evaluated", "task": task,
    }  # fmt: skip


_RATES = {"samples_per_second": "documents/s", "tokens_per_second": "tokens/s", "peak_memory_gb": "GB peak"}


def _source(metrics: Mapping[str, Any]) -> str:
    split, documents = metrics.get("split"), metrics.get("documents")
    if not split:
        return ""
    return f"{split}, {documents:,} documents" if isinstance(documents, int) else str(split)


def _splits(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main metrics of dev and test side by side, where there are both."""
    splits = {name: m | {"task": metrics.get("task")} for name, m in (metrics.get("splits") or {}).items() if m}
    if len(splits) < 2:
        return {}
    keys = [row.metric for row in main_rows(metrics)]
    lines = [(key, [score_row(m, key) for m in splits.values()]) for key in keys]
    return {"names": list(splits), "lines": lines}


def _per_target(metrics: Mapping[str, Any], labels: LabelSpace) -> dict[str, Any]:
    """Return metrics per regression target. They are in column order, whatever metrics.json calls them."""
    found = list((metrics.get("per_target") or {}).values())
    if len(found) != len(labels) or len(found) < 2:
        return {}
    keys = [key for key in ("pearson", "spearman", "r2", "mae", "rmse") if any(key in t for t in found)]
    return {"keys": keys, "lines": [(n, [t.get(k) for k in keys]) for n, t in zip(labels.names, found, strict=True)]}


def _bands(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the label-frequency bands as lines of (name, labels, positives, values, the baseline's values)."""
    bands = metrics.get("bands") or {}
    base = (metrics.get("baseline") or {}).get("bands") or {}
    wanted = ("micro_f1", "macro_f1", "recall_at_5", "rp_at_5", "ndcg_at_5")
    keys = [key for key in wanted if any(key in (band or {}) for band in bands.values())]
    lines = []
    for band, name in BANDS.items():
        here = bands.get(band) or {}
        if here.get("labels"):
            other = base.get(band) or {}
            # a band without a true label in the split has no F1 to speak of
            values = [(here.get(key), other.get(key)) if here.get("positives") else (None, None) for key in keys]
            lines.append({"name": name, "labels": here.get("labels"), "positives": here.get("positives"), "at": values})
    return {"keys": keys, "lines": lines, "baseline": bool(base)} if lines else {}


def _reading(metrics: Mapping[str, Any]) -> str:
    """Return in a sentence or two what truncation left unread."""
    reading = metrics.get("reading") or {}
    documents, cut = reading.get("documents"), reading.get("documents_cut")
    if not documents or cut is None:
        return ""
    most = reading.get("max_tokens")
    if cut == 0:
        return f"All {documents:,} documents were read whole: none is longer than {show(most)} tokens."
    text = f"{cut:,} of {documents:,} documents ({cut / documents:.1%}) are longer than {show(most)} tokens"
    text += f" and were cut by the strategy “{reading.get('strategy', 'head')}”."
    if total := reading.get("tokens_total"):
        text += f" Of all tokens {reading.get('tokens_read', 0) / total:.1%} were read."
    return text


def _notes(metrics: Mapping[str, Any], manifest: Mapping[str, Any], labels: LabelSpace) -> list[str]:
    """Return the notes of the data and of the evaluation, each once, and one on labels that training never saw."""
    notes = [*((manifest.get("data") or {}).get("notes") or []), *(metrics.get("notes") or [])]
    if metrics.get("task") != "regression" and len(labels.unseen):
        notes.append(
            f"{len(labels.unseen):,} of {len(labels):,} labels have no training document; where they are true "
            "they count as misses."
        )
    return list(dict.fromkeys(str(note) for note in notes))


def _details(manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return configuration, environment, data and encoder as YAML texts under their names."""
    data = {key: value for key, value in (manifest.get("data") or {}).items() if key != "notes"}
    encoder = {**(manifest.get("encoder") or {}), "plan": manifest.get("plan"), "reason": manifest.get("plan_reason")}
    if encoder_reason := (manifest.get("encoder") or {}).get("reason"):
        encoder = {**encoder, "reason": encoder_reason, "plan_reason": manifest.get("plan_reason")}
    sections = {
        "Configuration": manifest.get("config"), "Environment": manifest.get("environment"), "Data": data,
        "Encoder and plan": {k: v for k, v in encoder.items() if v is not None}, "Tuning": metrics.get("tuning"),
    }  # fmt: skip
    return [
        (name, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100))
        for name, tree in sections.items()
        if tree
    ]


def _labelled(
    scores: Scores,
    decided: Csr,
    labels: LabelSpace,
    texts: Mapping[str, str],
    decision: Decision | None,
    frequent: int,
) -> dict[str, Any]:
    """Return tables per label and example mistakes of a single- or multi-label run."""
    assert scores.targets is not None
    table = label_table(scores, decided, labels.names, labels.train_counts, decision.rule if decision else None)
    if scores.targets.task == "single":
        mistakes = [("Surest mistakes", single_mistakes(scores, labels, texts))]
    else:
        wrong, missed = multi_mistakes(scores, decided, labels, texts, frequent)
        mistakes = [("Decided, and not true: the surest", wrong), ("True, and missed: the least expected", missed)]
    if len(labels) <= WHOLE_TABLE:
        tables = [
            ("All labels, worst first", sorted(table, key=lambda row: (row.positives == 0, row.f1, -row.positives)))
        ]
    else:
        worst, best = worst_and_best(table, SHOWN_LABELS)
        tables = [("Worst labels", worst), ("Best labels", best)]
    chances = {row.name: _chance(row, scores.targets.task) for _, rows in tables for row in rows}
    result: dict[str, Any] = {"mistakes": mistakes, "tables": tables, "chances": chances, "table": table}
    if scores.targets.task == "single":
        chosen = np.asarray(decided.tocsr().argmax(axis=1)).ravel().astype(np.int64)
        result["confusion"] = confusion(scores.targets.values.astype(np.int64), chosen, labels.names)
        result["pairs"] = result["confusion"]["pairs"][:SHOWN_PAIRS]
    return result


def _chance(row: LabelRow, task: str) -> float | None:
    """Return the label's threshold as a probability; the rule keeps it as a logit. One label: no thresholds."""
    if row.threshold is None or task != "multi":
        return None
    return float(activate(np.array([[row.threshold]], dtype=np.float32), "sigmoid")[0, 0])
