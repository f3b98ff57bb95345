"""EURLEX57K as the experiment reads it: token ids and multi-hot targets over the declared label space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyhat.config import DataConfig, ReadingConfig
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader, Reading
from tinyhat.data.tokens import load_tokens
from tinyhat.encoder.load import load_tokenizer
from tinyhat.errors import UserError
from tinyhat.types import IntArray, Targets

FIXED = 64  # dev documents whose logits are compared between plans


@dataclass(frozen=True)
class Data:
    """Train and dev as tokens.

    Attributes:
        labels: L names; the declared 4,271 where labels.txt is there, never taken from dev.
        counts: int64 [L], training documents of each label.
        train: token ids and targets of the train split.
        dev: of the dev split.
    """

    labels: tuple[str, ...]
    counts: IntArray
    train: tuple[Reading, Targets]
    dev: tuple[Reading, Targets]


def load(folder: Path, tokens: Path | None, tokenizer: str, max_tokens: int, limit: int | None) -> Data:
    """Read the corpus from a folder (and tokenise it) or from a file of tokens.

    Raises:
        UserError: neither is there.
    """
    if tokens is not None:
        splits = load_tokens(tokens)
        train, dev = (_first(*splits[name], limit, max_tokens) for name in ("train", "dev"))
        names = tuple(str(j) for j in range(train[1].width))
        return Data(names, np.bincount(train[1].values.astype(np.int64), minlength=len(names)), train, dev)
    if not folder.exists():
        raise UserError(
            f"--data {folder} does not exist: write it with experiments/classification/prepare_data.py --source PATH"
        )
    dataset = read_dataset(DataConfig(path="eurlex57k", source=str(folder), limit=limit), 0)
    reader = Reader(load_tokenizer(tokenizer), ReadingConfig(max_tokens=max_tokens))
    train, dev = (
        (reader.read_cached(split.texts), split.targets) for split in (dataset.splits["train"], dataset.splits["dev"])
    )
    return Data(dataset.labels.names, dataset.labels.train_counts, train, dev)


def take(reading: Reading, rows: IntArray) -> Reading:
    """Return the documents of `rows` (int64 [M])."""
    pieces = [reading.input_ids[reading.indptr[i] : reading.indptr[i + 1]] for i in rows]
    ends = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    return Reading(np.concatenate(pieces), ends, reading.tokens_total[rows], reading.tokens_read[rows])


def _first(reading: Reading, targets: Targets, limit: int | None, max_tokens: int) -> tuple[Reading, Targets]:
    if int(reading.lengths.max()) > max_tokens:
        raise UserError(f"--tokens holds documents of {reading.lengths.max()} tokens, above --max_tokens {max_tokens}")
    rows = np.arange(min(len(reading), limit or len(reading)))
    return take(reading, rows), targets.take(rows)
