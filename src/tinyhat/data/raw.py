"""Rows become documents with their answers, before there is a label space."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyhat.data.columns import Columns
from tinyhat.data.tables import Row
from tinyhat.errors import UserError
from tinyhat.types import Document, Task

DELIMITERS = ("|", ";", ",")
TASKS: dict[str, Task] = {"label": "single", "labels": "multi", "target": "regression"}


@dataclass
class RawSplit:
    """N documents of one split with their answers as the file has them.

    Attributes:
        ids: N ids.
        texts: N texts, none empty.
        pairs: N second texts, or empty.
        labels: N lists of label names (single: one each), or empty for regression.
        numbers: N rows of K numbers, or empty.
        weights: N positive numbers, or empty.
        groups: N group names, or empty.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    numbers: list[list[float]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: npt.NDArray[np.int64]) -> RawSplit:
        """Return the split made of `rows` (int64 [M]), in that order."""
        columns = {name: [column[i] for i in rows] if column else [] for name, column in vars(self).items()}
        return RawSplit(**columns)


@dataclass
class RawDataset:
    """Splits as a source has them.

    Attributes:
        task: single, multi or regression.
        splits: train, dev, test to documents; train is always there.
        target_names: regression: K names.
        declared: the label names a corpus or a hub data set declares, in order, or None.
        notes: what the user should know, one sentence each.
        descriptors: label name to a readable description.
        split_missing: whether splits that are missing may be made from train.
    """

    task: Task
    splits: dict[str, RawSplit]
    target_names: tuple[str, ...] = ()
    declared: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)
    descriptors: dict[str, str] = field(default_factory=dict)
    split_missing: bool = True


class RowError(ValueError):
    """What is wrong with one row, as the end of a sentence that begins with the place."""


def read_split_rows(rows: Iterable[Row], columns: Columns, where: str, delimiter: str | None) -> RawSplit:
    """Convert the rows of one file.

    Args:
        rows: the rows in order.
        columns: which columns to read; `kind` is set.
        where: the file, for sentences.
        delimiter: separates labels in a string.

    Raises:
        UserError: at the first row that is malformed, has no text or no answer, or holds the wrong type, with its line;
            the same id twice in a column the user named.
    """
    split = RawSplit()
    lines: dict[str, int] = {}
    unique = True
    for position, row in enumerate(rows):
        try:
            if row.error:
                raise RowError(row.error)
            document = document_of(row.values, columns, position)
            _append(split, document, row.values, columns, delimiter)
        except RowError as error:
            raise UserError(f"{where}, line {row.line}: {error}") from None
        before = lines.setdefault(document.id, row.line)
        if before != row.line:
            unique = False
            if columns.id_named:
                raise UserError(
                    f"{where}: id '{document.id}' names lines {before} and {row.line}: make ids unique or "
                    "leave --id out"
                )
    if not split.texts:
        raise UserError(f"{where} is empty: it holds no document")
    if not unique:  # a detected id column that does not name documents is not one
        split.ids = [str(position) for position in range(len(split))]
    return split


def document_of(values: dict[str, Any], columns: Columns, position: int) -> Document:
    """Return the document of one row; without an id column its id is its 0-based `position`.

    Raises:
        RowError: the text is missing, empty, not text, or not encodable; the id is not encodable or holds a NUL.
    """
    if columns.pair:
        text, pair = (_text(values, column) for column in columns.pair)
        if not text or not pair:
            empty = columns.pair[0] if not text else columns.pair[1]
            raise RowError(f"column '{empty}' has no text: fill it in or remove the row")
    else:
        pair = None
        text = "\n".join(filter(None, (_text(values, column) for column in columns.text)))
        if not text:
            named = " and ".join(f"'{column}'" for column in columns.text)
            raise RowError(f"there is no text in column {named}: fill it in or remove the row")
    name = values.get(columns.id) if columns.id else None
    return Document(str(position) if name is None or name == "" else _id(str(name), str(columns.id)), text, pair)


def _id(name: str, column: str) -> str:
    if "\0" in name:
        raise RowError(f"column '{column}' holds an id with a NUL character, which HDF5 would cut: write it again")
    _require_whole(name, column)
    return name


def _text(values: dict[str, Any], column: str) -> str:
    value = values.get(column)
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)  # paragraphs
    if not isinstance(value, str):
        raise RowError(f"column '{column}' holds {_what(value)} where text is needed: name the text column with --text")
    _require_whole(value, column)
    return "" if not value or value.isspace() else value


def _require_whole(value: str, column: str) -> None:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f"column '{column}' holds half a character (a lone surrogate): write it again") from None


def _what(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict | bool) else f"the number {value}"


def _append(
    split: RawSplit, document: Document, values: dict[str, Any], columns: Columns, delimiter: str | None
) -> None:
    if columns.kind == "target":
        split.numbers.append([_target(values.get(column), column) for column in columns.answers])
    elif columns.kind == "labels":
        split.labels.append(_labels(values.get(columns.answers[0]), columns.answers[0], delimiter))
    else:
        split.labels.append([_label(values.get(columns.answers[0]), columns.answers[0])])
    split.ids.append(document.id)
    split.texts.append(document.text)
    if document.pair is not None:
        split.pairs.append(document.pair)
    if columns.weight:
        split.weights.append(_weight(values.get(columns.weight), columns.weight))
    if columns.group:
        group = values.get(columns.group)
        if group is None or group == "":
            raise RowError(f"column '{columns.group}' names no group: every document needs one")
        split.groups.append(str(group))


def _label(value: Any, column: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowError(f"column '{column}' has no label: fill it in or remove the row")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if value % 1:
            raise RowError(f"column '{column}' holds the number {value}, not a label: use --target for numbers")
        value = int(value)
    if isinstance(value, list | dict):
        raise RowError(f"column '{column}' holds a {type(value).__name__}, not one label: use --labels for lists")
    name = str(value).strip()
    if not name:
        raise RowError(f"column '{column}' has no label: fill it in or remove the row")
    return name


def _labels(value: Any, column: str, delimiter: str | None) -> list[str]:
    """An empty list or cell is a document without labels; a missing value is a mistake."""
    if value is None:
        raise RowError(f"column '{column}' is missing: write an empty list for a document without labels")
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):  # how pandas writes a list into a csv cell
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                raise RowError(f"column '{column}' holds {text[:40]!r}, which is not a list: check it") from None
        else:
            value = [part for part in (text.split(delimiter) if delimiter else [text]) if part.strip()]
    if not isinstance(value, list):
        value = [value]
    return [_label(item, column) for item in value]


def find_delimiter(values: Iterable[Any]) -> str | None:
    """Return the first of ``|``, ``;`` and ``,`` that any label string holds, or None."""
    strings = [value for value in values if isinstance(value, str) and not value.strip().startswith("[")]
    return next((mark for mark in DELIMITERS if any(mark in string for string in strings)), None)


def _target(value: Any, column: str) -> float:
    if value is None or value == "":
        raise RowError(f"column '{column}' has no number: fill it in or remove the row")
    number = _float(value, column, "use --label for classes")
    if not math.isfinite(number) or abs(number) > np.finfo(np.float32).max:
        raise RowError(f"column '{column}' holds {value}: give a finite number or remove the row")
    return number


def _weight(value: Any, column: str) -> float:
    if value is None or value == "":
        raise RowError(f"column '{column}' has no weight: give a positive number")
    number = _float(value, column, "give a positive number")
    if not (math.isfinite(number) and number > 0):
        raise RowError(f"column '{column}' holds the weight {value}: weights are positive numbers")
    return number


def _float(value: Any, column: str, advice: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise RowError(f"column '{column}' holds {str(value)[:40]!r}, which is not a number: {advice}") from None
