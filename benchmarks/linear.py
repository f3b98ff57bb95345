"""Time the linear model against one-vs-rest LinearSVC, on the same documents in one run.

    python benchmarks/linear.py [--source PATH] [--limit N] [--json]

The documents are EURLEX57K's where --source says where it lies, else pydocs. Our fit is whole (words, TF-IDF, all
labels, calibration). LinearSVC gets the ready TF-IDF rows and 128 labels, taken evenly over the labels by
frequency, as many at a time as there are cores; its time for all labels is the measured time times their number. Both
arms are scored on dev with one tuned threshold. Processor seconds are given beside the clock's: on a busy machine they
are the fairer measure. --limit takes that many training documents.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from sklearn.svm import LinearSVC

from tinyhat.config import DataConfig, EvaluateConfig, TuneConfig
from tinyhat.data.dataset import Split
from tinyhat.data.read import read_dataset
from tinyhat.evaluate.linear import SVM_STRENGTH, LinearModel, fit_linear
from tinyhat.evaluate.metrics import evaluate_scores
from tinyhat.tune.decided import decide, label_counts, truth
from tinyhat.tune.rule import fit_rule
from tinyhat.types import FloatArray, IntArray, Scores, Targets

SAMPLE = 128
GLOBAL = TuneConfig(rule="global")
SHOWN = ("micro_f1", "macro_f1", "precision_at_1", "precision_at_5", "rp_at_5")


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result with the clock's and the processor's seconds."""
    begin, spent = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
    }


def fit_svcs(rows: csr_array, train: Split, labels: IntArray, dev_rows: csr_array) -> FloatArray:
    """Return float32 [N, sample] dev margins of one LinearSVC per label."""
    columns = truth(train.targets).tocsc()

    def fit(j: int) -> FloatArray:
        y = np.zeros(len(train), dtype=np.int64)
        y[columns.indices[columns.indptr[j] : columns.indptr[j + 1]]] = 1
        return LinearSVC(C=SVM_STRENGTH, random_state=0).fit(rows, y).decision_function(dev_rows).astype(np.float32)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return np.stack(list(pool.map(fit, labels)), axis=1)


def micro_f1(logits: FloatArray, dev: Split, labels: IntArray) -> float:
    """Return dev micro-F1 over `labels` at the best single threshold."""
    part = csr_array(truth(dev.targets).tocsc()[:, labels])
    part.sort_indices()
    targets = Targets("multi", len(labels), part.indices.astype(np.int64), part.indptr.astype(np.int64))
    scores = Scores(dev.ids, logits, targets)
    return float(label_counts(truth(targets), decide(fit_rule(scores, GLOBAL), logits)).micro_f1())


def compare(source: str | None, limit: int | None) -> dict[str, Any]:
    """Fit both arms and return the figures."""
    data = DataConfig(path="eurlex57k" if source else "pydocs", source=source, task="multi")
    dataset = read_dataset(data)
    train, dev = dataset.splits["train"], dataset.splits["dev"]
    if limit:
        train = train.take(np.random.default_rng(0).permutation(len(train))[:limit])
    counts = np.bincount(train.targets.values.astype(np.int64), minlength=len(dataset.labels))
    model: LinearModel
    model, ours = timed(lambda: fit_linear(train.texts, None, train.targets, None, 0))
    scores = Scores(dev.ids, model.logits(dev.texts), dev.targets)
    decided = decide(fit_rule(scores, GLOBAL), scores.logits)
    found = evaluate_scores(scores, decided, counts, EvaluateConfig(bootstrap=0), 0)

    by_frequency = np.argsort(-counts, kind="stable")
    by_frequency = by_frequency[counts[by_frequency] > 0]
    step = -(-len(by_frequency) // SAMPLE)
    sample = by_frequency[step // 2 :: step]
    rows, dev_rows = (model.tfidf.transform(part.texts)[0].astype(np.float64) for part in (train, dev))
    margins, theirs = timed(lambda: fit_svcs(rows, train, sample, dev_rows))
    share = len(by_frequency) / len(sample)
    return {
        "data": dataset.name,
        "train_documents": len(train),
        "dev_documents": len(dev),
        "labels": len(by_frequency),
        "words": len(model.tfidf.vocabulary),
        "tinyhat": ours | {name: round(found[name], 4) for name in SHOWN},
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "linear_svc": theirs
        | {"labels": len(sample), "all_labels_cpu_seconds": round(theirs["cpu_seconds"] * share, 1)},
        "same_labels_micro_f1": {
            "tinyhat": round(micro_f1(np.ascontiguousarray(scores.logits[:, sample]), dev, sample), 4),
            "linear_svc": round(micro_f1(margins, dev, sample), 4),
        },
        "vs_linear_svc": round(theirs["cpu_seconds"] * share / ours["cpu_seconds"], 1),
    }


def main() -> None:
    """Print the figures as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="where EURLEX57K lies")
    parser.add_argument("--limit", type=int, help="at most this many training documents")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = compare(options.source, options.limit)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    ours, theirs, same = result["tinyhat"], result["linear_svc"], result["same_labels_micro_f1"]
    print(
        f"{result['data']}: {result['train_documents']} documents, {result['labels']} labels, {result['words']} words"
    )
    print(f"tinyhat, all labels: {ours['seconds']} s ({ours['cpu_seconds']} s of processor)")
    print("  dev, one threshold: " + ", ".join(f"{name} {ours[name]}" for name in SHOWN))
    print(f"LinearSVC, {theirs['labels']} labels: {theirs['seconds']} s ({theirs['cpu_seconds']} s of processor)")
    all_labels, ratio = theirs["all_labels_cpu_seconds"], result["vs_linear_svc"]
    print(f"  all labels would take {all_labels} s of processor, {ratio} times ours")
    print(f"  dev micro-F1 on these labels: LinearSVC {same['linear_svc']}, tinyhat {same['tinyhat']}")
    print(f"peak memory of both: {result['peak_memory_gb']} GB")


if __name__ == "__main__":
    main()
