"""The label space: which labels there are, in which order, and which of them training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinyhat.types import IntArray, Targets, Task


@dataclass(frozen=True)
class LabelSpace:
    """Ordered label names with the number of training documents of each.

    Attributes:
        names: L label names; column j of the logits is ``names[j]``. Regression: the K target names.
        train_counts: int64 [L], training documents per label; 0 marks a label that training never saw.
        declared: True when the names come from a declared list and not from the training split.
    """

    names: tuple[str, ...]
    train_counts: IntArray
    declared: bool = False

    @cached_property
    def index(self) -> dict[str, int]:
        """Label name to column."""
        return {name: j for j, name in enumerate(self.names)}

    @property
    def unseen(self) -> IntArray:
        """Indices of the labels without a training document."""
        return np.flatnonzero(self.train_counts == 0)

    def __len__(self) -> int:
        return len(self.names)


def encode_labels(label_lists: Sequence[Sequence[str]], names: Sequence[str], task: Task) -> tuple[Targets, int]:
    """Turn label names per document into Targets over `names`; labels outside are dropped and counted.

    Args:
        label_lists: N lists of label names; for the single task each holds exactly one.
        names: the L names of the label space.
        task: single or multi.

    Returns:
        The targets (duplicates within a document merged, indices ascending), and how many labels were outside.
    """
    index = {name: j for j, name in enumerate(names)}
    if task == "single":
        values = np.array([index.get(labels[0], -1) for labels in label_lists], dtype=np.int64)
        return Targets("single", len(names), values), int((values < 0).sum())
    rows: list[list[int]] = []
    outside = 0
    for labels in label_lists:
        known = sorted({index[label] for label in labels if label in index})
        outside += len({label for label in labels if label not in index})
        rows.append(known)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    values = np.fromiter((j for row in rows for j in row), dtype=np.int64, count=int(indptr[-1]))
    return Targets("multi", len(names), values, indptr), outside
