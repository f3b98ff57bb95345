"""Data sets of the Hugging Face hub, through the optional package `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyhat.config import DataConfig
from tinyhat.data.files import SPLIT_NAMES, read_tables
from tinyhat.data.raw import RawDataset
from tinyhat.data.tables import Row
from tinyhat.errors import UserError, missing_extra


def read_hub(name: str, config: DataConfig) -> RawDataset:
    """Read ``owner/name[:config]`` from the hub. Class names declare the label space, in the order of the data set.

    Raises:
        UserError: `datasets` is not installed, the hub cannot be reached, there is no such data set or configuration,
            it needs a script, it has no train split, or its columns are in doubt.
    """
    repository, _, subset = name.partition(":")
    loaded = load_hub(repository, subset or None)
    splits = {SPLIT_NAMES[key]: loaded[key] for key in loaded if key in SPLIT_NAMES}
    if "train" not in splits:
        raise UserError(f"hub:{name} has no train split (it has {', '.join(map(str, loaded))}): name another data set")
    notes: list[str] = []
    rows: dict[str, list[Row]] = {}
    for split in ("train", "dev", "test"):
        if split not in splits:
            continue
        if _hidden(splits[split]):
            notes.append(f"the {split} split of hub:{name} hides its labels and is left out")
        else:
            rows[split] = list(_rows(splits[split]))
    raw = read_tables(rows, {split: f"hub:{name} {split}" for split in rows}, config)
    raw.notes.extend(notes)
    raw.declared = _declared(splits["train"], raw) if raw.task != "regression" else None
    return raw


def load_hub(repository: str, subset: str | None = None, revision: str | None = None) -> Any:
    """Return what ``datasets.load_dataset`` returns: a mapping of splits.

    Raises:
        UserError: as `read_hub`.
    """
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "hub", f"reading hub:{repository}") from None
    where = f"hub:{repository}" + (f":{subset}" if subset else "")
    try:
        return datasets.load_dataset(repository, subset, revision=revision)
    except Exception as error:  # the hub client raises OSError, ValueError, RuntimeError, ConnectionError and its own
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        if "scripts are no longer supported" in reason:
            advice = "it needs a Python script that datasets 4 refuses, so download its files and give their path"
        elif "Config name is missing" in reason or "BuilderConfig" in reason:
            advice = "name one of its configurations as hub:owner/name:config"
        else:
            advice = "check the name and the network"
        raise UserError(f"{where} could not be loaded ({type(error).__name__}: {reason}): {advice}") from None


def _class_names(split: Any) -> dict[str, list[str]]:
    """Column name to class names, for columns of one class or of lists of classes."""
    found = {}
    for column, feature in split.features.items():
        feature = getattr(feature, "feature", feature)
        if hasattr(feature, "names"):
            found[column] = list(feature.names)
    return found


def _hidden(split: Any) -> bool:
    """Whether a benchmark hides the classes of this split, written as -1."""
    return (
        any(not isinstance(split[0][c], list) and set(split[c]) == {-1} for c in _class_names(split))
        if split
        else False
    )


def _rows(split: Any) -> Iterator[Row]:
    classes = _class_names(split)
    for number, values in enumerate(split, 1):
        row = dict(values)
        for column, names in classes.items():
            value = row[column]
            row[column] = [names[v] for v in value] if isinstance(value, list) else _name(names, value)
        yield Row(number, row)


def _name(names: list[str], value: int | None) -> str | None:
    return names[value] if value is not None and value >= 0 else None


def _declared(split: Any, raw: RawDataset) -> tuple[str, ...] | None:
    """The class names of the column the labels came from: those that hold every label in use."""
    used = {label for labels in raw.splits["train"].labels for label in labels}
    return next((tuple(names) for names in _class_names(split).values() if used <= set(names)), None)
