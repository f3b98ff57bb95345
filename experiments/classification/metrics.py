"""The note's metrics: micro and macro F1 at 0.5 and at a tuned threshold, and precision at 1, 3 and 5."""

from __future__ import annotations

import numpy as np

from tinyhat.config import TuneConfig
from tinyhat.decision import Rule
from tinyhat.errors import UserError
from tinyhat.evaluate.ranking import ranking_values
from tinyhat.tune.decided import decide, label_counts, truth
from tinyhat.tune.rule import cross_fitted
from tinyhat.types import FloatArray, Scores, Targets


def measure(logits_NL: FloatArray, targets: Targets, seed: int) -> dict[str, float | None]:
    """Return the metrics by name; all None where a logit is no number.

    Args:
        logits_NL: fp32 [N, L] of the dev split.
        targets: true labels over the declared space: labels that no plan can know count as misses.
        seed: of the folds. The threshold of a document is fitted on the other folds (one for all labels).
    """
    if not np.isfinite(logits_NL).all():
        return dict.fromkeys(NAMES)
    true = truth(targets)
    half = label_counts(true, decide(Rule(kind="global", threshold=0.0), logits_NL))
    found: dict[str, float | None] = {"micro_f1": half.micro_f1(), "macro_f1": float(half.f1().mean())}
    try:
        scores = Scores([str(i) for i in range(len(targets))], logits_NL, targets)
        decided, _ = cross_fitted(scores, TuneConfig(rule="global"), seed)
        tuned = label_counts(true, decided)
        found |= {"tuned_micro_f1": tuned.micro_f1(), "tuned_macro_f1": float(tuned.f1().mean())}
    except UserError:
        found |= {"tuned_micro_f1": None, "tuned_macro_f1": None}
    ranked = ranking_values(logits_NL, true, (1, 3, 5))
    return found | {f"precision_at_{k}": float(ranked[f"precision_at_{k}"].mean()) for k in (1, 3, 5)}


NAMES = (
    "micro_f1", "macro_f1", "tuned_micro_f1", "tuned_macro_f1", "precision_at_1", "precision_at_3", "precision_at_5",
)  # fmt: skip
