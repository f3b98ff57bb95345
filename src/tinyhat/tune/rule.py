"""From dev scores to a Rule, and the dev decisions that rule did not see (cross-fitting)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from tinyhat.config import TuneConfig
from tinyhat.decision import Rule, RuleKind
from tinyhat.errors import UserError
from tinyhat.tune.decided import Csr, decide, label_counts, require_targets, truth
from tinyhat.tune.thresholds import global_threshold, label_thresholds
from tinyhat.types import IntArray, Scores, Targets, Task


def check_rule(config: TuneConfig, task: Task, labels: int) -> None:
    """Say before any training what `fit_rule` could only say after it.

    Args:
        config: rule and top_k.
        task: what is decided.
        labels: L.

    Raises:
        UserError: a rule that does not fit the task, or that decides every label of every document.
    """
    if _kind(config, task) == "top_k" and config.top_k >= labels:
        raise UserError(
            f"tune.top_k = {config.top_k} decides every label of every document, there are {labels}: set it lower"
        )


def fit_rule(scores: Scores, config: TuneConfig, unseen: Sequence[int] = ()) -> Rule:
    """Fit the rule that `config.rule` names on the scores of the dev split.

    auto is argmax for the single task, thresholds for multi, the value itself for regression.

    Args:
        scores: float32 [N, L] logits with their true targets.
        config: rule, top_k, and shrink for thresholds.
        unseen: labels without a training document; the head knows nothing of them, so they are never chosen.

    Raises:
        UserError: as `check_rule`; no true label to fit on, NaN logits.
    """
    targets = require_targets(scores)
    check_rule(config, targets.task, targets.width)
    kind = _kind(config, targets.task)
    if kind == "value":
        return Rule(kind=kind)
    never = tuple(int(j) for j in unseen)
    if kind == "argmax":
        return Rule(kind=kind, never=never)
    if kind == "top_k":
        return Rule(kind=kind, k=config.top_k, never=never)
    if len(targets.values) == 0:
        raise UserError(
            "no document of the dev split has a label, so there is no threshold to fit: give a dev split with labels "
            "or set tune.rule to top_k"
        )
    true = truth(targets)
    shared = global_threshold(scores.logits, true)
    if kind == "global":
        return Rule(kind=kind, threshold=shared, never=never)
    own = label_thresholds(scores.logits, true, fallback=shared, shrink=config.shrink)
    return Rule(kind=kind, thresholds=tuple(own.tolist()), never=never)


def cross_fitted(
    scores: Scores, config: TuneConfig, seed: int, unseen: Sequence[int] = ()
) -> tuple[Csr, dict[str, Any]]:
    """Decide every dev document by a rule fitted on the other folds.

    Thresholds fitted on the documents they are measured on flatter themselves; these decisions do not.

    Args:
        scores: float32 [N, L] logits with their true targets (single or multi).
        config: the rule, and `folds`, the number of parts the documents are dealt into.
        seed: of the dealing.
        unseen: as for `fit_rule`.

    Returns:
        The out-of-fold decisions, bool CSR [N, L], and a summary: rule, folds, fitted_micro_f1, fitted_macro_f1 (the
        flattering figures), micro_f1, macro_f1 (the honest ones). A rule with nothing to fit has them equal.

    Raises:
        UserError: as `fit_rule`.
    """
    targets = require_targets(scores)
    rule = fit_rule(scores, config, unseen)
    fitted = decide(rule, scores.logits)
    honest = fitted
    if rule.kind in ("thresholds", "global"):
        parts = [_out_of_fold(scores, targets, rows, config, unseen) for rows in deal(len(targets), config.folds, seed)]
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        honest = sparse.vstack([decided for _, decided in parts], format="csr")[order]
    true = truth(targets)
    counts, flattered = label_counts(true, honest), label_counts(true, fitted)
    return honest, {
        "rule": rule.kind,
        "folds": config.folds,
        "fitted_micro_f1": flattered.micro_f1(),
        "fitted_macro_f1": float(flattered.f1().mean()),
        "micro_f1": counts.micro_f1(),
        "macro_f1": float(counts.f1().mean()),
    }


def deal(documents: int, folds: int, seed: int) -> list[IntArray]:
    """Deal `documents` rows at random into at most `folds` ascending, disjoint, non-empty folds of equal size (+-1)."""
    order = np.random.default_rng(seed).permutation(documents)
    return [np.sort(part) for part in np.array_split(order, min(folds, documents))]


def _out_of_fold(
    scores: Scores, targets: Targets, rows: IntArray, config: TuneConfig, unseen: Sequence[int]
) -> tuple[IntArray, Csr]:
    """Return `rows` with the decisions of a rule fitted on all other rows."""
    others = np.setdiff1d(np.arange(len(targets)), rows)
    rest = Scores([scores.ids[i] for i in others], scores.logits[others], targets.take(others), scores.plan)
    if rest.targets is None or len(rest.targets.values) == 0:
        # nothing to fit on: decide nothing, which is what this much evidence supports
        return rows, sparse.csr_array((len(rows), targets.width), dtype=bool)
    return rows, decide(fit_rule(rest, config, unseen), scores.logits[rows])


def _kind(config: TuneConfig, task: Task) -> RuleKind:
    if task == "regression":
        if config.rule != "auto":
            raise UserError(f"tune.rule is '{config.rule}', but regression decides no labels: leave it at auto")
        return "value"
    if task == "single":
        if config.rule not in ("auto", "argmax"):
            raise UserError(
                f"tune.rule is '{config.rule}', but a task with one label a document takes the best one: use argmax"
            )
        return "argmax"
    return "thresholds" if config.rule == "auto" else config.rule
