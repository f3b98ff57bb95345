"""EURLEX57K as the experiment reads it: token ids and multi-hot targets over the declared label space."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass

import numpy as np

from tinyhat.config import DataConfig, ReadingConfig
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader, Reading
from tinyhat.data.tokens import load_tokens, tokenizer_hash
from tinyhat.encoder.load import load_tokenizer
from tinyhat.encoder.untrained import NAME as UNTRAINED
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


def load(options: argparse.Namespace, max_tokens: int) -> Data:
    """Read the corpus from ``--data`` (and tokenise it) or from ``--tokens``.

    Raises:
        UserError: neither is there, or the ids are another tokenizer's than the model's.
    """
    model, limit = options.model, options.limit
    if options.tokens is not None:
        wanted = None if model == UNTRAINED else tokenizer_hash(load_tokenizer(model))
        splits = load_tokens(options.tokens, wanted)
        if not splits.keys() >= {"train", "dev"}:
            raise UserError(
                f"--tokens {options.tokens} lacks a train or a dev split: write it with benchmarks/tokens.py"
            )
        train, dev = (_first(*splits[name], limit, max_tokens) for name in ("train", "dev"))
        names = tuple(str(j) for j in range(train[1].width))
        counts = np.bincount(train[1].values.astype(np.int64), minlength=len(names))
    else:
        if not options.data.exists():
            raise UserError(
                f"--data {options.data} does not exist: write it with "
                "experiments/classification/prepare_data.py --source PATH"
            )
        dataset = read_dataset(DataConfig(path="eurlex57k", source=str(options.data), limit=limit), 0)
        reader = Reader(load_tokenizer("minilm" if model == UNTRAINED else model), ReadingConfig(max_tokens=max_tokens))
        train, dev = (
            (reader.read_cached(dataset.splits[n].texts), dataset.splits[n].targets) for n in ("train", "dev")
        )
        names, counts = dataset.labels.names, dataset.labels.train_counts
    if options.dev_limit:
        rows = np.arange(min(options.dev_limit, len(dev[0])))
        dev = take(dev[0], rows), dev[1].take(rows)
    return Data(names, counts, train, dev)


def fingerprint(data: Data) -> str:
    """Return a short hash of all token ids and labels: whether two runs read the same documents."""
    digest = hashlib.sha256(repr(data.labels).encode())
    for reading, targets in (data.train, data.dev):
        for array in (reading.input_ids, reading.indptr, targets.values, targets.indptr):
            digest.update(np.asarray(array, dtype=np.int64).tobytes())
    return digest.hexdigest()[:8]


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
