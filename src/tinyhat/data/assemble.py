"""Documents with answers become a dataset: missing splits are made, the label space is fixed, answers are encoded."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyhat.config import DataConfig
from tinyhat.data.dataset import Dataset, Split
from tinyhat.data.labels import LabelSpace, encode_labels
from tinyhat.data.raw import RawDataset, RawSplit
from tinyhat.data.split import stratified_split
from tinyhat.data.tables import read_rows
from tinyhat.errors import UserError
from tinyhat.types import IntArray, Targets, Task

INTEGER = re.compile(r"[+-]?\d+")


def assemble(raw: RawDataset, config: DataConfig, seed: int, name: str) -> Dataset:
    """Make the dataset that everything downstream sees.

    Args:
        raw: the splits of a source.
        config: label_list, limit, dev_share and test_share are used.
        seed: of made splits and of the documents that a limit keeps.
        name: how the user called the data.

    Raises:
        UserError: no train split; the answers cannot be learnt: all different, all the same, too few documents; a bad
            label list.
    """
    if "train" not in raw.splits:
        raise UserError(f"{name} has no train file (it has {', '.join(raw.splits)}): name one train.* or give a file")
    declared = read_label_list(config.label_list) if config.label_list else raw.declared
    _check_answers(raw, declared, name)
    notes = list(raw.notes)
    splits, made = _make_splits(raw, config, seed)
    notes += made
    if config.limit is not None:
        notes += [f"{n}: {config.limit:,} of {len(s):,} documents" for n, s in splits.items() if len(s) > config.limit]
        splits = {n: _limited(s, config.limit, seed) for n, s in splits.items()}
    if raw.task == "regression":
        names = raw.target_names
    else:
        names = declared or label_names(splits["train"].labels)
        if len(names) < 2:
            raise UserError(
                f"{name} has the single label '{''.join(names)}' in training: add documents of another label"
            )
        if raw.task == "single":
            notes += _drop_outside(splits, set(names))
    finished = {n: finish_split(n, s, raw.task, names) for n, s in splits.items()}
    for n, s in splits.items():
        notes += outside_note(n, s.labels, names)
    space = LabelSpace(names, count_labels(finished["train"].targets), declared is not None)
    if len(space.unseen) and raw.task != "regression":
        notes.append(f"{len(space.unseen):,} of {len(space):,} declared labels have no training document")
    return Dataset(name, raw.task, space, finished, dataset_sha256(finished, names), tuple(notes), raw.descriptors)


def label_names(label_lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the distinct label names in order: whole numbers by value (2 before 10), other names alphabetically."""
    names = {label for labels in label_lists for label in labels}
    if all(INTEGER.fullmatch(label) for label in names):
        return tuple(sorted(names, key=lambda label: (int(label), label)))
    return tuple(sorted(names))


def read_label_list(path: str) -> tuple[str, ...]:
    """Return the declared labels of a file with one label a line, in its order.

    Raises:
        UserError: the file is missing, empty, not UTF-8, or names a label twice.
    """
    file = Path(path)
    # read as plain text whatever its name is
    if not file.is_file():
        list(read_rows(file))  # raises with the nearest name
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"--label-list {path} is not UTF-8 text: save it as UTF-8 with one label a line") from None
    if not names:
        raise UserError(f"--label-list {path} is empty: write one label a line")
    twice = [label for label, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"--label-list {path} names '{twice[0]}' twice: name each label once")
    return tuple(names)


def finish_split(name: str, raw: RawSplit, task: Task, names: Sequence[str]) -> Split:
    """Return a Split whose targets are over `names`; labels outside are dropped (single: -1)."""
    if task == "regression":
        numbers = np.array(raw.numbers, dtype=np.float32).reshape(len(raw), len(names))
        targets = Targets("regression", len(names), numbers)
    else:
        targets = encode_labels(raw.labels, names, task)[0]
    weights = np.array(raw.weights, dtype=np.float32) if raw.weights else None
    return Split(name, raw.ids, raw.texts, targets, raw.pairs or None, weights, raw.groups or None)


def outside_note(name: str, label_lists: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    """Return a sentence on the labels of a split that are outside the label space, or nothing."""
    known = set(names)
    outside = Counter(label for labels in label_lists for label in set(labels) if label not in known)
    if not outside:
        return []
    shown = ", ".join(label for label, _ in outside.most_common(3)) + (", ..." if len(outside) > 3 else "")
    return [
        f"{name}: {outside.total():,} answers name {len(outside):,} labels outside the label space ({shown}); "
        "they are left out"
    ]


def count_labels(targets: Targets) -> IntArray:
    """Return int64 [width], documents per label; for regression N for every target."""
    if targets.task == "regression":
        return np.full(targets.width, len(targets), dtype=np.int64)
    values = targets.values.astype(np.int64)
    return np.bincount(values[values >= 0], minlength=targets.width).astype(np.int64)


def dataset_sha256(splits: dict[str, Split], names: Sequence[str]) -> str:
    """Return the sha256 over label names, and ids, texts, pairs, targets and weights of all splits."""
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    for name in sorted(splits):
        split = splits[name]
        digest.update(name.encode())
        for column in (split.ids, split.texts, split.pairs or []):
            encoded = [value.encode() for value in column]
            # lengths first, so that no two data sets run together into the same bytes
            digest.update(np.array([len(column), *map(len, encoded)], dtype="<i8").tobytes())
            digest.update(b"".join(encoded))
        arrays = (split.targets.values, split.targets.indptr, split.weights)
        for array in arrays:
            if array is not None:
                little = array.astype("<f4" if array.dtype.kind == "f" else "<i8")
                digest.update(np.array(little.shape, dtype="<i8").tobytes() + little.tobytes())
    return digest.hexdigest()


def _check_answers(raw: RawDataset, declared: tuple[str, ...] | None, name: str) -> None:
    train = raw.splits["train"]
    if raw.task == "regression":
        numbers = np.array(train.numbers)
        for j, target in enumerate(raw.target_names):
            if (numbers[:, j] == numbers[0, j]).all():
                raise UserError(f"{name}: target '{target}' is {numbers[0, j]:g} in every row: name another column")
        return
    counts = Counter(label for labels in train.labels for label in labels)
    if declared is None and len(train) > 2 and counts and max(counts.values()) == 1:
        raise UserError(
            f"{name}: every label occurs once ({len(counts):,} labels on {len(train):,} documents), so the label "
            "column looks like an id: name another with --label"
        )
    if len(counts) < 2 and declared is None:
        found = f"only the label '{next(iter(counts))}'" if counts else "no labels"
        raise UserError(f"{name} has {found} in training: add documents of another label or name another column")
    if declared is not None and not counts.keys() & set(declared):
        raise UserError(f"{name}: no training label is in the declared list: check the list and the label column")


def _make_splits(raw: RawDataset, config: DataConfig, seed: int) -> tuple[dict[str, RawSplit], list[str]]:
    """Make dev where it is missing, and test only where there is nothing but train."""
    splits = dict(raw.splits)
    notes: list[str] = []
    if not raw.split_missing:
        return splits, notes
    if "dev" in splits:
        if "test" not in splits:
            notes.append("there is no test split and none is made: figures are on dev")
        return splits, notes
    wanted = [("test", config.test_share, seed)] if "test" not in splits else []
    rest = 1 - config.test_share if wanted else 1.0
    if config.dev_share >= rest:
        raise UserError(
            f"data.dev_share {config.dev_share} and data.test_share {config.test_share} leave nothing to train"
        )
    wanted.append(("dev", config.dev_share / rest, seed + 1))
    for name, share, split_seed in wanted:
        train = splits["train"]
        targets = finish_split("train", train, raw.task, raw.target_names or label_names(train.labels)).targets
        kept, held = stratified_split(targets, share, split_seed, train.groups or None)
        splits["train"], splits[name] = train.take(kept), train.take(held)
        notes.append(
            f"{name} is made of {len(held):,} of the {len(train):,} training documents, stratified, seed {seed}"
        )
    return {name: splits[name] for name in ("train", "dev", "test") if name in splits}, notes


def _limited(split: RawSplit, limit: int, seed: int) -> RawSplit:
    """A smaller limit keeps a subset of what a larger one keeps; the documents stay in their order."""
    if len(split) <= limit:
        return split
    order = np.random.RandomState(seed % 2**32).permutation(len(split))
    return split.take(np.sort(order[:limit]))


def _drop_outside(splits: dict[str, RawSplit], known: set[str]) -> list[str]:
    """A training document whose one label is outside a declared list cannot be learnt from."""
    train = splits["train"]
    inside = np.flatnonzero([labels[0] in known for labels in train.labels])
    if len(inside) == len(train):
        return []
    splits["train"] = train.take(inside)
    return [f"train: {len(train) - len(inside):,} documents have a label outside the declared list and are left out"]
