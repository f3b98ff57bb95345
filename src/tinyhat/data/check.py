"""What is in a dataset and what is wrong with it, before anything is trained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tinyhat.data.check_table import render_check
from tinyhat.data.dataset import Dataset, Split
from tinyhat.data.duplicates import clusters, signatures, similar_pairs
from tinyhat.data.labels import LabelSpace
from tinyhat.types import IntArray, Targets

__all__ = ["check_dataset", "render_check"]

EXAMPLES = 3
CHUNK = 512  # documents handed to the tokenizer at once
PERCENTILES = (50, 90, 95, 99)


def check_dataset(
    dataset: Dataset, tokenizer: Tokenizer | None = None, frequent: int = 50, max_tokens: int = 512
) -> dict[str, Any]:
    """Count labels and lengths, find duplicates, leakage, conflicts and unseen labels.

    Args:
        dataset: what was read.
        tokenizer: lengths are in its tokens, special tokens not counted; None counts words.
        frequent: training documents from which a label is called frequent.
        max_tokens: documents longer than this, special tokens counted, are reported as cut (only with a tokenizer).

    Returns:
        A JSON object:

        - ``name``, ``task``, ``sha256``, ``notes``: as the dataset has them.
        - ``labels``: ``count``, ``declared``, ``bands`` (frequent, few, zero: number of labels by training documents),
          ``frequent_from``, ``counts`` (label to training documents, commonest first); None for regression.
        - ``splits``, per split: ``documents``; ``empty`` (no letter or digit); ``labels_per_document`` (mean, min,
          median, max, none: documents without a label) or ``targets`` (name to mean, std, min, max); ``bands`` (answers
          by band of their label); ``unseen`` (``labels`` of the split without a training document, ``answers``);
          ``length`` (unit, mean, min, max, p50, p90, p95, p99); ``cut`` (max_tokens, documents, share) or None;
          ``exact_duplicates`` and ``near_duplicates`` (documents that repeat an earlier one of the split, the latter
          including the former).
        - ``leakage``, per pair of splits such as ``train-dev``: ``exact`` and ``near`` (documents of the second with a
          duplicate in the first, the latter including the former), ``examples`` (pairs of ids).
        - ``conflicts``: ``documents`` that share their text with one of another answer, ``examples`` (pairs of
          [split, id]).
    """
    bands = _bands(dataset.labels, frequent)
    keys = {name: _keys(split) for name, split in dataset.splits.items()}
    near = _near(dataset)
    report: dict[str, Any] = {"name": dataset.name, "task": dataset.task, "sha256": dataset.sha256}
    report["notes"] = list(dataset.notes)
    report["labels"] = None if dataset.task == "regression" else _label_report(dataset.labels, bands, frequent)
    report["splits"] = {}
    for name, split in dataset.splits.items():
        facts: dict[str, Any] = {"documents": len(split)}
        facts["empty"] = sum(not any(c.isalnum() for c in key) for key in keys[name])
        facts |= _answers(split.targets, dataset.labels, bands) | _lengths(split, tokenizer, max_tokens)
        facts["exact_duplicates"] = len(split) - len(set(keys[name]))
        facts["near_duplicates"] = len(split) - len(set(near.cluster[name].tolist()))
        report["splits"][name] = facts
    report["leakage"] = {
        f"{one}-{other}": _leakage(dataset.splits[one], dataset.splits[other], keys, near)
        for one, other in combinations(dataset.splits, 2)
    }
    report["conflicts"] = _conflicts(dataset, keys)
    return report


class _Near:
    """Clusters of near duplicates over all splits, and the pairs behind them as (split, row)."""

    def __init__(self, dataset: Dataset, cluster: IntArray, pairs: IntArray) -> None:
        sizes = [len(split) for split in dataset.splits.values()]
        self.begins = dict(zip(dataset.splits, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self.cluster = {n: cluster[b : b + len(dataset.splits[n])] for n, b in self.begins.items()}
        self.pairs = pairs

    def between(self, one: Split, other: Split) -> list[tuple[int, int]]:
        """Return pairs (row in `one`, row in `other`), one for each row of `other`."""
        a, b = self.begins[one.name], self.begins[other.name]
        left, right = self.pairs[:, 0] - a, self.pairs[:, 1] - b
        across = (left >= 0) & (left < len(one)) & (right >= 0) & (right < len(other))
        by_row = {int(j): int(i) for i, j in zip(left[across], right[across], strict=True)}
        return [(i, j) for j, i in by_row.items()]


def _near(dataset: Dataset) -> _Near:
    texts = [text for split in dataset.splits.values() for text in _texts(split)]
    pairs = similar_pairs(signatures(texts))
    return _Near(dataset, clusters(len(texts), pairs), pairs)


def _texts(split: Split) -> list[str]:
    if split.pairs is None:
        return split.texts
    return [f"{text}\n{pair}" for text, pair in zip(split.texts, split.pairs, strict=True)]


def _keys(split: Split) -> list[str]:
    """White space is no difference between two texts."""
    return [" ".join(text.split()) for text in _texts(split)]


def _bands(labels: LabelSpace, frequent: int) -> dict[str, IntArray]:
    counts = labels.train_counts
    masks = {"frequent": counts >= frequent, "few": (counts > 0) & (counts < frequent), "zero": counts == 0}
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def _label_report(labels: LabelSpace, bands: dict[str, IntArray], frequent: int) -> dict[str, Any]:
    order = np.argsort(-labels.train_counts, kind="stable")
    return {
        "count": len(labels),
        "declared": labels.declared,
        "frequent_from": frequent,
        "bands": {name: len(members) for name, members in bands.items()},
        "counts": {labels.names[j]: int(labels.train_counts[j]) for j in order},
    }


def _answers(targets: Targets, labels: LabelSpace, bands: dict[str, IntArray]) -> dict[str, Any]:
    if targets.task == "regression":
        columns = zip(labels.names, targets.values.T.astype(np.float64), strict=True)
        return {"targets": {name: _spread(v) | {"std": round(float(v.std()), 4)} for name, v in columns}}
    values = targets.values.astype(np.int64)
    per_label = np.bincount(values[values >= 0], minlength=targets.width)
    each = (values >= 0).astype(np.int64) if targets.indptr is None else np.diff(targets.indptr)
    zero = bands["zero"]
    return {
        "labels_per_document": _spread(each) | {"median": float(np.median(each)), "none": int((each == 0).sum())},
        "bands": {name: int(per_label[members].sum()) for name, members in bands.items()},
        "unseen": {"labels": int((per_label[zero] > 0).sum()), "answers": int(per_label[zero].sum())},
    }


def _spread(values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 4), "min": float(values.min()), "max": float(values.max())}


def _lengths(split: Split, tokenizer: Tokenizer | None, max_tokens: int) -> dict[str, Any]:
    lengths = _count_words(split) if tokenizer is None else _count_tokens(split, tokenizer)
    found: dict[str, Any] = {"unit": "words" if tokenizer is None else "tokens"} | _spread(lengths)
    found |= {f"p{p}": float(np.percentile(lengths, p)) for p in PERCENTILES}
    if tokenizer is None:
        return {"length": found, "cut": None}
    cut = int((lengths + tokenizer.num_special_tokens_to_add(split.pairs is not None) > max_tokens).sum())
    share = round(cut / len(split), 4)
    return {"length": found, "cut": {"max_tokens": max_tokens, "documents": cut, "share": share}}


def _count_words(split: Split) -> IntArray:
    return np.array([len(text.split()) for text in _texts(split)], dtype=np.int64)


def _count_tokens(split: Split, tokenizer: Tokenizer) -> IntArray:
    # a copy: the caller's tokenizer keeps its truncation
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()

    def count(texts: Sequence[str]) -> IntArray:
        chunks = (list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))
        encoded = (e for chunk in chunks for e in whole.encode_batch_fast(chunk, add_special_tokens=False))
        return np.fromiter((len(e) for e in encoded), dtype=np.int64, count=len(texts))

    return count(split.texts) if split.pairs is None else count(split.texts) + count(split.pairs)


def _leakage(one: Split, other: Split, keys: dict[str, list[str]], near: _Near) -> dict[str, Any]:
    first: dict[str, int] = {}
    for row, key in enumerate(keys[one.name]):
        first.setdefault(key, row)
    exact = [(first[key], row) for row, key in enumerate(keys[other.name]) if key in first]
    similar = np.isin(near.cluster[other.name], near.cluster[one.name])
    repeated = {row for _, row in exact}
    examples = (exact + [pair for pair in near.between(one, other) if pair[1] not in repeated])[:EXAMPLES]
    return {
        "exact": len(exact),
        "near": int(similar.sum()),
        "examples": [[one.ids[i], other.ids[j]] for i, j in examples],
    }


def _conflicts(dataset: Dataset, keys: dict[str, list[str]]) -> dict[str, Any]:
    repeated = {key for key, count in Counter(key for split in keys.values() for key in split).items() if count > 1}
    found: dict[str, dict[tuple[float, ...], list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for name, split in dataset.splits.items():
        for row, key in enumerate(keys[name]):
            if key in repeated:
                found[key][_answer(split.targets, row)].append((name, split.ids[row]))
    conflicts = [list(by_answer.values()) for by_answer in found.values() if len(by_answer) > 1]
    return {
        "documents": sum(len(documents) for conflict in conflicts for documents in conflict),
        "examples": [[list(conflict[0][0]), list(conflict[1][0])] for conflict in conflicts[:EXAMPLES]],
    }


def _answer(targets: Targets, row: int) -> tuple[float, ...]:
    if targets.task == "regression":
        return tuple(targets.values[row].tolist())
    return tuple(targets.labels_of(row).tolist())
