"""The vocabulary of tinyhat as types. Standard library and numpy only.

Dimension letters, here and in every tensor suffix: B documents, S sequences, T tokens, D width, H heads, L labels,
N documents of a whole split, K regression targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Task = Literal["single", "multi", "regression"]
"""single: one label of several; multi: any number of labels; regression: one or more numbers."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

NOT_ASKED = -100
"""The token target of a place where nothing is to be predicted (the value transformers' losses ignore)."""


@dataclass(frozen=True)
class Document:
    """One document as its user knows it. `pair` is the second text of a text pair, or None."""

    id: str
    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Targets:
    """What N documents should be given, in one form for all three tasks.

    Attributes:
        task: which of the three readings below holds.
        width: L, the number of labels (single, multi), or K, the number of regression targets.
        values: single: int64 [N] label indices, -1 where the document's label is outside the label space;
            multi: int64 [nnz] label indices, the column part of a CSR matrix; regression: float32 [N, K].
        indptr: multi only: int64 [N + 1], the row part of the CSR matrix.
    """

    task: Task
    width: int
    values: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    indptr: IntArray | None = None

    def __len__(self) -> int:
        return len(self.values) if self.indptr is None else len(self.indptr) - 1

    def take(self, rows: IntArray) -> Targets:
        """Return the targets of `rows` (int64 [B]), in that order."""
        if self.indptr is None:
            return Targets(self.task, self.width, self.values[rows])
        counts = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # position of every kept entry: the start of its row, plus its place within the row
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], counts)
        return Targets(self.task, self.width, self.values[np.repeat(self.indptr[rows], counts) + within], indptr)

    def labels_of(self, row: int) -> IntArray:
        """Return the label indices of one document (single and multi), int64 [number of labels]."""
        if self.indptr is not None:
            return self.values[self.indptr[row] : self.indptr[row + 1]].astype(np.int64)
        return self.values[row : row + 1][self.values[row : row + 1] >= 0].astype(np.int64)

    def dense(self) -> FloatArray:
        """Return float32 [N, width]: multi-hot (multi), one-hot (single), or the numbers themselves (regression)."""
        if self.task == "regression":
            return np.asarray(self.values, dtype=np.float32)
        out = np.zeros((len(self), self.width), dtype=np.float32)
        if self.indptr is None:
            rows = np.flatnonzero(self.values >= 0)
            out[rows, self.values[rows].astype(np.int64)] = 1.0
        else:
            out[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.values.astype(np.int64)] = 1.0
        return out


@dataclass(frozen=True)
class Pack:
    """The tokens of several sequences laid end to end, with the boundaries; no pad token anywhere.

    Attributes:
        input_ids: int64 [T].
        position_ids: int64 [T], restarting at every sequence at the encoder's first position.
        cu_seqlens: int32 [S + 1], where each sequence begins; the last entry is T.
        max_seqlen: the longest sequence, known before the step.
        sequence_doc: int64 [S], which document of the pack a sequence belongs to.
        rows: int64 [B], the dataset row of each document.
        targets: the targets of those rows, or None.
        token_type_ids: int64 [T] for text pairs, or None.
        weights: float32 [B] document weights, or None for ones.
        token_targets: int64 [T], the token to predict at each place (masked LM), NOT_ASKED elsewhere; or None.
    """

    input_ids: IntArray
    position_ids: IntArray
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int
    sequence_doc: IntArray
    rows: IntArray
    targets: Targets | None = None
    token_type_ids: IntArray | None = None
    weights: FloatArray | None = None
    token_targets: IntArray | None = None

    @property
    def tokens(self) -> int:
        """T, the number of tokens in the pack."""
        return len(self.input_ids)

    @property
    def documents(self) -> int:
        """B, the number of documents in the pack."""
        return len(self.rows)


@dataclass(frozen=True)
class Scores:
    """The logits of one split, with what they should have been.

    Attributes:
        ids: the N document ids, in input order.
        logits: float32 [N, L] (single, multi: before softmax or sigmoid) or [N, K] (regression: the values).
        targets: the true targets, or None where the data carries none.
        plan: the numeric plan the logits were computed in, for example ``fp32`` or ``bf16``.
    """

    ids: Sequence[str]
    logits: FloatArray
    targets: Targets | None
    plan: str = "fp32"


@dataclass(frozen=True)
class Prediction:
    """Logits of one document and how much of it was read. `error` is set, and logits None, for a bad document.

    `windows` are the sequences it was read in; `speaker`, int64 [L], is the one (0-based) whose own logit is the
    highest for each label, or None where documents are read in one sequence.
    """

    id: str
    logits: FloatArray | None
    tokens_read: int = 0
    tokens_total: int = 0
    error: str | None = None
    windows: int = 1
    speaker: IntArray | None = None


class Predictor(Protocol):
    """Anything that turns documents into logits: the torch encoder, the linear model, later ONNX and HTTP.

    `predict_logits` streams: it yields one Prediction per document in input order and holds a bounded number of them.
    """

    plan: str

    def predict_logits(self, documents: Iterator[Document]) -> Iterator[Prediction]:
        """Yield a Prediction for every document, in input order."""
        ...
