"""Time thresholds and metrics against scikit-learn, side by side in one run: 6,000 documents x 4,271 labels.

    python benchmarks/metrics.py [--documents 6000] [--labels 4271] [--slow] [--json]

The scores are synthetic with the shape of EURLEX57K's dev split: about five labels a document, label frequencies by
Zipf's law. Every row is the best of up to three runs; rows that compute the same number are checked to agree. `--slow`
adds scikit-learn's precision-recall curve for every label.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyhat.config import EvaluateConfig, TuneConfig
from tinyhat.decision import Rule
from tinyhat.evaluate.metrics import evaluate_scores
from tinyhat.evaluate.ranking import ranking_values
from tinyhat.tune.decided import decide, label_counts, truth
from tinyhat.tune.rule import cross_fitted, fit_rule
from tinyhat.types import Scores, Targets

Row = dict[str, Any]


def synthetic(documents: int, labels: int, seed: int = 0) -> tuple[Scores, np.ndarray]:
    """Return scores with Zipf label frequencies and the training counts that go with them."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, labels + 1)
    share *= 5 / share.sum()
    hot = rng.random((documents, labels), dtype=np.float32) < share.astype(np.float32)
    logits = rng.standard_normal((documents, labels), dtype=np.float32)
    logits *= 1.5
    logits -= 6
    logits[hot] += 6
    indptr = np.concatenate([[0], np.cumsum(hot.sum(axis=1))]).astype(np.int64)
    targets = Targets("multi", labels, np.nonzero(hot)[1].astype(np.int64), indptr)
    counts = rng.binomial(45_000, np.minimum(share, 1))
    return Scores([str(i) for i in range(documents)], logits, targets), counts


def measure(documents: int, labels: int, slow: bool) -> list[Row]:
    """Run every row, own before sklearn, and return name, seconds, value and peak memory so far."""
    from sklearn.metrics import f1_score, ndcg_score, precision_recall_curve

    scores, counts = synthetic(documents, labels)
    true = truth(scores.targets)
    rows: list[Row] = []

    def timed(name: str, work: Callable[[], Any], value: Callable[[Any], float] = float) -> Any:
        seconds, spent = float("inf"), 0.0
        for _ in range(3):
            begin = time.perf_counter()
            result = work()
            last = time.perf_counter() - begin
            seconds, spent = min(seconds, last), spent + last
            if spent > 4:
                break
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"name": name, "seconds": round(seconds, 3), "value": value(result), "peak_mb": round(peak)})
        return result

    rule = timed(
        "own: global and per-label thresholds, exact",
        lambda: fit_rule(scores, TuneConfig()),
        lambda r: len(r.thresholds),
    )
    timed(
        "own: the same, cross-fitted in 5 folds",
        lambda: cross_fitted(scores, TuneConfig(), 0),
        lambda r: r[1]["micro_f1"],
    )
    timed("own: one global threshold", lambda: fit_rule(scores, TuneConfig(rule="global")), lambda r: r.threshold)
    found = timed("own: decisions to CSR", lambda: decide(rule, scores.logits), lambda r: r.nnz)
    plain, full = EvaluateConfig(bootstrap=0), EvaluateConfig(bootstrap=1000)
    timed(
        "own: all metrics and bands", lambda: evaluate_scores(scores, found, counts, plain, 0), lambda r: r["micro_f1"]
    )
    timed("own: with 1,000 resamples", lambda: evaluate_scores(scores, found, counts, full, 0), lambda r: r["macro_f1"])
    timed("own: micro F1 from CSR", lambda: label_counts(true, found).micro_f1())
    timed("sklearn: f1_score micro, CSR", lambda: f1_score(true, found, average="micro"))
    dense, dense_found = true.toarray(), found.toarray()
    timed("sklearn: f1_score micro, dense", lambda: f1_score(dense, dense_found, average="micro"))
    timed("own: ranking, 16 metrics", lambda: ranking_values(scores.logits, true), lambda r: r["ndcg_at_10"].mean())
    timed("sklearn: ndcg_score(k=10)", lambda: ndcg_score(dense, scores.logits, k=10))
    if slow:

        def curves() -> list[float]:
            best = []
            for j in np.flatnonzero(dense.any(axis=0)):
                precision, recall, cuts = precision_recall_curve(dense[:, j], scores.logits[:, j])
                total = precision + recall
                f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
                best.append(float(f1[:-1].max()) if len(cuts) else 0.0)
            return best

        timed("sklearn: precision_recall_curve per label", curves, lambda r: sum(r) / labels)
        own = timed(
            "own: unshrunk thresholds", lambda: fit_rule(scores, TuneConfig(shrink=0)), lambda r: len(r.thresholds)
        )
        _agree(rows[-2]["value"], _macro(own, scores))
    values = {row["name"]: row["value"] for row in rows}
    _agree(values["own: micro F1 from CSR"], values["sklearn: f1_score micro, CSR"])
    _agree(values["own: micro F1 from CSR"], values["sklearn: f1_score micro, dense"])
    _agree(values["own: ranking, 16 metrics"], values["sklearn: ndcg_score(k=10)"])
    return rows


def _macro(rule: Rule, scores: Scores) -> float:
    return float(label_counts(truth(scores.targets), decide(rule, scores.logits)).f1().mean())


def _agree(a: float, b: float) -> None:
    if abs(a - b) > 1e-9:
        raise SystemExit(f"own and scikit-learn's numbers differ: {a} and {b}")


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--labels", type=int, default=4271)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.documents, options.labels, options.slow)
    if options.json:
        print(json.dumps({"documents": options.documents, "labels": options.labels, "rows": rows}, indent=2))
        return
    print(f"{'':44} {'seconds':>8} {'peak MB':>8}  value")
    for row in rows:
        print(f"{row['name']:44} {row['seconds']:8.3f} {row['peak_mb']:8} {row['value']:10.5g}")


if __name__ == "__main__":
    main()
