"""The documents a person should read first: where the model was surest and wrong.

Letters: N documents, L labels, K regression targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tinyhat.data.dataset import Split
from tinyhat.data.labels import LabelSpace
from tinyhat.decision import activate
from tinyhat.tune.decided import Csr, truth
from tinyhat.types import FloatArray, IntArray, Scores

TEXT_CHARACTERS = 400
CHIPS = 12
EXAMPLES = 5


@dataclass(frozen=True)
class Chip:
    """One label of a document: decided and true (right), decided only (wrong), true only (missed)."""

    label: str
    probability: float
    kind: Literal["right", "wrong", "missed"]


@dataclass(frozen=True)
class Mistake:
    """One document to read: `reason` says what went wrong, `more` how many labels are not shown as chips."""

    id: str
    text: str
    reason: str
    chips: list[Chip]
    more: int = 0


def shorten(text: str, most: int = TEXT_CHARACTERS) -> str:
    """Return `text` with white space collapsed, cut at a word at no more than `most` characters plus an ellipsis."""
    # 4 characters of source per character kept: a novel need not be split as a whole
    words = " ".join(text[: 4 * most].split())
    if len(words) <= most:
        return words if len(text) <= 4 * most else words + " …"
    return words[:most].rsplit(" ", 1)[0] + " …"


def multi_mistakes(
    scores: Scores, decided: Csr, labels: LabelSpace, texts: Mapping[str, str], frequent: int
) -> tuple[list[Mistake], list[Mistake]]:
    """Return the surest false positives and the surest misses of a multi-label run.

    Misses are taken among labels with at least `frequent` training documents where there are any: that a label seen
    twice is missed teaches nothing. A document appears once, and a label again only when there are no others.

    Args:
        scores: logits [N, L] with targets.
        decided: bool [N, L].
        labels: the label space, for names and training counts.
        texts: document id to snippet, as far as they are known.
        frequent: training documents from which a label is called frequent.
    """
    assert scores.targets is not None, "mistakes need true targets"
    true = truth(scores.targets)

    def pick(rows: IntArray, columns: IntArray, sign: int, word: str) -> list[Mistake]:
        order = np.argsort(sign * scores.logits[rows, columns], kind="stable")
        found = []
        for i, j in _varied(zip(rows[order], columns[order], strict=True), EXAMPLES):
            probability = float(activate(scores.logits[i : i + 1, j : j + 1], "sigmoid")[0, 0])
            reason = f"{labels.names[j]} {word} at {_percent(probability)}"
            found.append(_document(scores, i, _row(decided, i), _row(true, i), labels, texts, reason))
        return found

    missed_rows, missed = _only(true, decided)
    frequent_enough = labels.train_counts[missed] >= frequent
    keep = frequent_enough if frequent_enough.any() else labels.train_counts[missed] > 0
    return pick(*_only(decided, true), -1, "decided"), pick(missed_rows[keep], missed[keep], 1, "missed")


def single_mistakes(scores: Scores, labels: LabelSpace, texts: Mapping[str, str]) -> list[Mistake]:
    """Return documents surest of a wrong label (argmax of logits [N, L]), varied in that label."""
    assert scores.targets is not None, "mistakes need true targets"
    true = scores.targets.values.astype(np.int64)
    best, confidence = top_probability(scores.logits)
    wrong = np.flatnonzero((true >= 0) & (best != true))
    found = []
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    for i, _ in _varied(zip(wrong, best[wrong], strict=True), 2 * EXAMPLES):
        probability = activate(scores.logits[i : i + 1], "softmax")[0]
        decided, right = int(best[i]), int(true[i])
        found.append(
            Mistake(
                str(scores.ids[i]),
                texts.get(str(scores.ids[i]), ""),
                f"{labels.names[right]} taken for {labels.names[decided]} at {_percent(float(probability[decided]))}",
                [
                    Chip(labels.names[decided], float(probability[decided]), "wrong"),
                    Chip(labels.names[right], float(probability[right]), "missed"),
                ],
            )
        )
    return found


def regression_mistakes(scores: Scores, labels: LabelSpace, texts: Mapping[str, str]) -> list[Mistake]:
    """Return the documents with the largest error of any target, in standard deviations of the true values."""
    assert scores.targets is not None, "mistakes need true targets"
    true = scores.targets.values.astype(np.float64)
    error = scores.logits - true
    spread = np.where(true.std(axis=0) > 0, true.std(axis=0), 1.0)
    worst = np.abs(error / spread).max(axis=1)
    found = []
    for i in np.argsort(-worst, kind="stable")[: 2 * EXAMPLES]:
        parts = [
            f"{name}: true {t:.3g}, predicted {p:.3g}"
            for name, t, p in zip(labels.names, true[i], scores.logits[i], strict=True)
        ]
        found.append(Mistake(str(scores.ids[i]), texts.get(str(scores.ids[i]), ""), "; ".join(parts), []))
    return found


def top_probability(logits: FloatArray) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Return the best label int64 [N] and its softmax probability [N] of logits [N, L], a thousand rows at a time."""
    best = np.argmax(logits, axis=1).astype(np.int64)
    confidence = np.empty(len(logits))
    for start in range(0, len(logits), 1024):
        part = logits[start : start + 1024].astype(np.float64)
        confidence[start : start + 1024] = 1.0 / np.exp(part - part.max(axis=1, keepdims=True)).sum(axis=1)
    return best, confidence


def _document(
    scores: Scores,
    i: int,
    chosen: IntArray,
    true: IntArray,
    labels: LabelSpace,
    texts: Mapping[str, str],
    reason: str,
) -> Mistake:
    """Return one multi-label document with its decided and its true labels, the most probable first."""
    both = np.union1d(chosen, true)
    probability = activate(scores.logits[i : i + 1, both], "sigmoid")[0]
    chips = []
    for place in np.argsort(-probability, kind="stable"):
        j = both[place]
        kind: Literal["right", "wrong", "missed"] = "missed" if j not in chosen else "right" if j in true else "wrong"
        chips.append(Chip(labels.names[j], float(probability[place]), kind))
    # the mistakes are what the reader came for: right labels give way first
    shown = sorted(sorted(chips, key=lambda c: c.kind == "right")[:CHIPS], key=lambda c: -c.probability)
    return Mistake(str(scores.ids[i]), texts.get(str(scores.ids[i]), ""), reason, shown, len(chips) - len(shown))


def _only(this: Csr, other: Csr) -> tuple[IntArray, IntArray]:
    """Return rows and columns of what is True in `this` and not in `other` (bool CSR [N, L])."""
    cells = (this > other).tocoo()
    return cells.row[cells.data].astype(np.int64), cells.col[cells.data].astype(np.int64)


def _row(matrix: Csr, i: int) -> IntArray:
    return np.asarray(matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]], dtype=np.int64)


def _varied(cells: Iterable[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Return up to `most` (document, label) cells, each document once; labels not yet shown come first.

    Without this the ten surest mistakes of a young model are ten times the same one.
    """
    chosen: dict[int, int] = {}
    passed: list[tuple[int, int]] = []
    labels: set[int] = set()
    for i, j in cells:
        if len(chosen) == most:
            break
        if j in labels and len(passed) < most:
            passed.append((i, j))
        elif j not in labels and i not in chosen:
            chosen[int(i)] = int(j)
            labels.add(j)
    for i, j in passed:
        if len(chosen) < most:
            chosen.setdefault(int(i), int(j))
    return list(chosen.items())


def snippets(split: Split) -> dict[str, str]:
    """Return document id to shortened text. Scores know ids only; a split in another order still fits."""
    pairs = split.pairs or [""] * len(split)
    joined = zip(split.ids, split.texts, pairs, strict=True)
    return {name: shorten(f"{text} ⁄ {pair}" if pair else text) for name, text, pair in joined}


def _percent(probability: float) -> str:
    return (
        f"{100 * probability:.0f}%" if 0.01 <= probability <= 0.99 else "under 1%" if probability < 0.5 else "over 99%"
    )
