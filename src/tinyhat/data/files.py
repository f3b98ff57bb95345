"""A file, or a folder of train, dev and test files, becomes documents with answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinyhat.config import DataConfig
from tinyhat.data.columns import Columns, find_columns, require_columns
from tinyhat.data.raw import TASKS, RawDataset, find_delimiter, read_split_rows
from tinyhat.data.tables import COMPRESSIONS, Row, format_of, read_rows
from tinyhat.errors import UserError

SPLIT_NAMES = {"train": "train", "training": "train", "dev": "dev", "validation": "dev", "val": "dev", "valid": "dev"}
SPLIT_NAMES["test"] = "test"
SAMPLE = 200  # rows that columns are detected from


def read_files(path: Path, config: DataConfig) -> RawDataset:
    """Read a file (all of it train) or a folder of split files.

    Raises:
        UserError: nothing there, no split file, or whatever is wrong in a file, with its line.
    """
    if not path.is_dir() and format_of(path) == "txt":
        raise UserError(f"{path} is plain text without labels: training needs csv, tsv, jsonl or parquet with a label")
    files = split_files(path) if path.is_dir() else {"train": path}
    if not files:
        raise UserError(
            f"folder {path} has no train, dev or test file (it has {_listing(path)}): name one so or give a file"
        )
    rows = {name: list(read_rows(file)) for name, file in files.items()}
    return read_tables(rows, {name: str(file) for name, file in files.items()}, config)


def split_files(folder: Path) -> dict[str, Path]:
    """Return split name (train, dev, test) to file for a folder, going by the file names.

    Raises:
        UserError: two files of one split.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        name = SPLIT_NAMES.get(file.name.split(".")[0].lower())
        if name is None or not file.is_file() or format_of(file) in (None, "txt"):
            continue
        if name in found:
            raise UserError(
                f"folder {folder} has two {name} files, {found[name].name} and {file.name}: keep one of them"
            )
        found[name] = file
    return {name: found[name] for name in ("train", "dev", "test") if name in found}


def read_tables(rows: Mapping[str, Sequence[Row]], where: Mapping[str, str], config: DataConfig) -> RawDataset:
    """Convert rows per split; the train rows (or the first split's) say what the columns mean.

    Args:
        rows: split name to rows.
        where: split name to the place that sentences name.
        config: column flags.

    Raises:
        UserError: an empty file, columns that are missing or in doubt, a bad row.
    """
    for name in rows:
        if not rows[name]:
            raise UserError(f"{where[name]} is empty: it holds no document")
    first = next(iter(rows))
    columns = find_columns(config, _sample(rows[first], where[first]), where[first])
    assert columns.kind is not None
    delimiter = config.delimiter
    if columns.kind == "labels" and delimiter is None:
        delimiter = find_delimiter(row.values.get(columns.answers[0]) for row in rows[first])
    splits = {}
    for name in rows:
        require_columns(columns.used(), {key for row in _sample(rows[name], where[name]) for key in row}, where[name])
        splits[name] = read_split_rows(rows[name], columns, where[name], delimiter)
    notes = [_columns_note(columns, delimiter)]
    targets = columns.answers if columns.kind == "target" else ()
    return RawDataset(TASKS[columns.kind], splits, targets, notes=notes)


def _sample(rows: Sequence[Row], where: str) -> list[dict[str, object]]:
    sample = [row.values for row in rows[:SAMPLE] if not row.error]
    if not sample:
        raise UserError(f"{where}, line {rows[0].line}: {rows[0].error}")
    return sample


def _columns_note(columns: Columns, delimiter: str | None) -> str:
    text = " + ".join(columns.pair or columns.text)
    split_at = f" (split at '{delimiter}')" if delimiter else ""
    return f"text from {text}, {columns.kind} from {', '.join(columns.answers)}{split_at}"


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "nothing"


def plain_name(path: Path) -> str:
    """Return the name of a file without its format and compression: ``laws.jsonl.gz`` is ``laws``."""
    name = path.name
    for suffix in reversed(path.suffixes):
        if suffix.lower() in COMPRESSIONS or format_of(Path("x" + suffix)) is not None:
            name = name.removesuffix(suffix)
        else:
            break
    return name
