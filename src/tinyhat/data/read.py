"""Reading: whatever the user names becomes a Dataset; documents to predict stream one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from tinyhat.config import DataConfig
from tinyhat.data.assemble import assemble, finish_split, outside_note
from tinyhat.data.columns import Columns, find_columns
from tinyhat.data.corpora import CORPORA, read_corpus
from tinyhat.data.dataset import Dataset, Split
from tinyhat.data.files import SAMPLE, SPLIT_NAMES, plain_name, read_files
from tinyhat.data.hub import read_hub
from tinyhat.data.raw import RawDataset, RowError, document_of
from tinyhat.data.tables import Row, format_of, read_rows
from tinyhat.errors import UserError, did_you_mean
from tinyhat.types import Document, Task


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be predicted.

    Attributes:
        id: its id where it has one, else its 0-based position.
        line: its 1-based line in the file (Parquet: row).
        error: one sentence: where, what is wrong, what to do.
    """

    id: str
    line: int
    error: str


def read_dataset(config: DataConfig, seed: int = 0) -> Dataset:
    """Read what ``config.path`` names: a file, a folder with train / dev / test files, a corpus, or ``hub:owner/name``.

    Args:
        config: the data section.
        seed: of made splits and of the documents that ``config.limit`` keeps.

    Raises:
        UserError: in one sentence, whatever is wrong with the data: nothing there, an unknown or doubtful column, an
            empty or damaged file, a bad row with its line, answers that cannot be learnt.
    """
    return assemble(_read_raw(config), config, seed, _name(config))


def read_split(config: DataConfig, split: str, labels: Sequence[str], task: Task) -> tuple[Split, list[str]]:
    """Read labelled documents for a label space that is already there.

    Args:
        config: the data section; a single file is the split, whatever it is called; no split is made, no limit used.
        split: train, dev or test.
        labels: the L label names (regression: the K target names, which are the target columns when none are named).
        task: what the labels are for.

    Returns:
        The split with targets over `labels`, labels outside dropped (single: -1), and a sentence that counts them.

    Raises:
        UserError: as `read_dataset`; the split is not there; the data is for another task.
    """
    named = config.label or config.labels or config.target
    target = tuple(labels) if task == "regression" and not named else config.target
    raw = _read_raw(config.model_copy(update={"target": target, "task": "auto" if named else task}))
    name = split if len(raw.splits) > 1 or not _is_file(config.path) else next(iter(raw.splits))
    if name not in raw.splits:
        raise UserError(f"{config.path} has no {split} split (it has {', '.join(raw.splits)}): name one with --split")
    if raw.task != task or (task == "regression" and len(raw.target_names) != len(labels)):
        raise UserError(f"{config.path} is read as {raw.task} and the model is {task}: name its columns with flags")
    finished = finish_split(split, raw.splits[name], task, labels)
    notes = [] if task == "regression" else outside_note(split, raw.splits[name].labels, labels)
    if notes and not (finished.targets.values >= 0).any():
        raise UserError(f"{config.path}: none of its labels is among the model's {len(labels)}: name the label column")
    return finished, notes


def read_documents(path: str | Path, config: DataConfig) -> Iterator[Document | BadRow]:
    """Stream the documents of a file for prediction, in order and in flat memory; only text and id are read.

    Args:
        path: csv, tsv, jsonl, parquet, or txt with one document a line, plain, .gz or .zst; ``-`` is JSON lines
            on stdin.
        config: text, pair and id columns; detected in the first rows when empty.

    Raises:
        UserError: the file cannot be read at all, or its text column is missing or in doubt.
    """
    rows = read_rows(path)
    head = list(islice(rows, SAMPLE))
    if not head:
        raise UserError(f"{path if str(path) != '-' else 'stdin'} is empty: it holds no document")
    sample = [row.values for row in head if not row.error]
    columns = Columns(("text",))
    # plain text has one unnamed column, whatever the text column of the training data was called
    if sample and (config.pair or format_of(Path(path)) != "txt"):
        columns = find_columns(config, sample, str(path), labelled=False)
    for position, row in enumerate(chain(head, rows)):
        yield _document(row, columns, position)


def _document(row: Row, columns: Columns, position: int) -> Document | BadRow:
    try:
        if row.error:
            raise RowError(row.error)
        return document_of(row.values, columns, position)
    except RowError as error:
        name = row.values.get(columns.id) if columns.id else None
        # what is wrong may be the id itself
        shown = "" if name is None else str(name).encode(errors="replace").decode().replace("\0", "?")
        return BadRow(shown or str(position), row.line, f"line {row.line}: {error}")


def _read_raw(config: DataConfig) -> RawDataset:
    if not config.path:
        raise UserError(f"there is no data: name a file, a folder, a corpus ({', '.join(CORPORA)}) or hub:owner/name")
    if config.path in CORPORA:
        return read_corpus(config)
    if config.source is not None:
        raise UserError(f"--source says where a known corpus lies ({', '.join(CORPORA)}), and '{config.path}' is none")
    if config.path.startswith("hub:"):
        return read_hub(config.path.removeprefix("hub:"), config)
    path = Path(config.path)
    if not path.exists() and not path.suffix:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(config.path, CORPORA) or did_you_mean(path.name, siblings)
        raise UserError(
            f"'{config.path}' is neither a file, a folder, a corpus ({', '.join(CORPORA)}) nor hub:owner/name{hint}"
        )
    return read_files(path, config)


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _name(config: DataConfig) -> str:
    if config.path in CORPORA or config.path.startswith("hub:"):
        return config.path
    path = Path(config.path)
    name = plain_name(path)
    return path.resolve().parent.name if name in SPLIT_NAMES and path.is_file() else name or path.resolve().name
