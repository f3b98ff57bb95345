"""Text to pretrain on: whatever the reader can read, without labels, and a part of it held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from tinyhat.config import DataConfig
from tinyhat.data.columns import find_columns
from tinyhat.data.corpora import CORPORA, read_corpus
from tinyhat.data.files import SAMPLE, split_files
from tinyhat.data.hub import load_hub
from tinyhat.data.raw import RowError, document_of
from tinyhat.data.tables import NAMED, Row, format_of, read_rows
from tinyhat.errors import UserError, did_you_mean
from tinyhat.types import Document

PART = 1 << 14  # characters handed to the tokenizer at once: a novel's encoding would take 30 MB


@dataclass(frozen=True)
class Corpus:
    """Documents without labels.

    Attributes:
        train: texts to train on.
        validation: texts held out, never trained on.
        sha256: of all texts in order.
        notes: what the user should know, one sentence each.
    """

    train: list[str]
    validation: list[str]
    sha256: str
    notes: tuple[str, ...]


def read_texts(config: DataConfig, share: float, seed: int) -> Corpus:
    """Read the text of a file, a folder, a known corpus or ``hub:owner/name``, and hold out `share` of it.

    Of data with splits the train split alone is read. Other folders give all their tables, or where there are none
    all their txt files, subfolders included; a txt file is one running text. ``config.limit`` counts documents.

    Args:
        config: the data section; path, source, text, pair and limit count.
        share: of the characters to hold out.
        seed: of which documents.

    Raises:
        UserError: nothing to read, a damaged file, a bad row with its line, too little text to hold any out.
    """
    found, notes = _read(config)
    texts = list(islice((t for t in found if t and not t.isspace()), config.limit))
    if not texts:
        raise UserError(f"{config.path} holds no text: name a corpus with text in it")
    train, validation = hold_out(texts, share, seed)
    if not train or not validation:
        raise UserError(f"{config.path} holds too little text ({sum(map(len, texts))} characters) to hold some out")
    size = sum(map(len, validation))
    notes.append(
        f"{len(texts)} documents of {sum(map(len, texts)):,} characters, {size:,} of them held out for validation"
    )
    return Corpus(train, validation, texts_hash(texts), tuple(notes))


def texts_hash(texts: Iterable[str], salt: str = "") -> str:
    """Return the sha256 of texts in order, and of `salt`, as hex."""
    digest = hashlib.sha256(f"tinyhat corpus 1 {salt}".encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def hold_out(texts: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Return the texts to train on, in order, and those held out: whole documents in a seeded order.

    One that is more than half too long gives only its end, so that a corpus of one document works too.
    """
    total = share * sum(map(len, texts))
    wanted = total
    train, validation = list(texts), []
    for i in np.random.default_rng([seed, len(texts)]).permutation(len(texts)):
        if wanted < 1 or wanted < total / 2 < len(texts[i]):  # no small rest is cut from a document
            break
        text = texts[i]
        end = len(text.rstrip())  # white space behind the last word is nothing to hold out
        at = 0 if len(text) <= 1.5 * wanted else _cut(text, max(0, end - int(wanted)), end)
        train[i], part = text[:at], text[at:]
        validation.append(part)
        wanted -= len(part)
    return [t for t in train if t.strip()], [t for t in validation if t.strip()]


def text_parts(text: str) -> Iterator[str]:
    """Yield a text in parts of about PART characters, cut at ends of lines or else between words; joined they are it.

    Tokens do not cross white space, so that the parts have the tokens of the whole.
    """
    begin = 0
    while len(text) - begin > 2 * PART:
        end = _cut(text, begin + PART, len(text))
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _cut(text: str, near: int, stop: int) -> int:
    """Return where to cut: behind a newline or else a space from `near` on, within PART characters and before `stop`.

    Where there is none, `near` itself.
    """
    for mark in ("\n", " "):
        found = text.find(mark, near, min(near + PART, stop))
        if found >= 0:
            return found + 1
    return near


def _read(config: DataConfig) -> tuple[Iterator[str], list[str]]:
    if not config.path:
        raise UserError(f"there is no corpus: name a file, a folder, a corpus ({', '.join(CORPORA)}) or hub:owner/name")
    if config.path in CORPORA:
        raw = read_corpus(config)
        return iter(raw.splits["train"].texts), [f"{config.path}: the texts of its train split"]
    if config.path.startswith("hub:"):
        repository, _, subset = config.path.removeprefix("hub:").partition(":")
        loaded = load_hub(repository, subset or None)
        if "train" not in loaded:
            raise UserError(f"{config.path} has no train split (it has {', '.join(map(str, loaded))}): name another")
        rows = (Row(number, dict(values)) for number, values in enumerate(loaded["train"], 1))
        return _table(rows, config, config.path), [f"{config.path}: the texts of its train split"]
    path = Path(config.path)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(config.path, CORPORA) or did_you_mean(path.name, siblings) or ": check the path"
        raise UserError(f"'{config.path}' does not exist{hint}")
    files, notes = _files(path)
    return chain.from_iterable(_texts(file, config) for file in files), notes


def _files(path: Path) -> tuple[list[Path], list[str]]:
    if not path.is_dir():
        return [path], []
    splits = split_files(path)
    if "train" in splits:
        return [splits["train"]], [f"{path}: {splits['train'].name} is read, other splits are left alone"]
    known = [p for p in sorted(path.rglob("*")) if p.is_file() and format_of(p)]
    tables = [p for p in known if format_of(p) != "txt"]
    chosen = tables or known
    if not chosen:
        raise UserError(f"folder {path} has no file with text in it (tinyhat reads txt and {NAMED})")
    left = [p.name for p in known if p not in chosen]
    more = f"; left out beside them: {', '.join(left[:5])}" if left else ""
    return chosen, [f"{path}: {', '.join(p.name for p in chosen[:5])}{' ...' if len(chosen) > 5 else ''}{more}"]


def _texts(path: Path, config: DataConfig) -> Iterator[str]:
    rows = read_rows(path)
    if path.is_file() and format_of(path) == "txt":
        lines = []
        for row in rows:
            if row.error:
                raise UserError(f"{path}, line {row.line}: {row.error}")
            lines.append(row.values["text"])
        yield "\n".join(lines)
    else:
        yield from _table(rows, config, str(path))


def _table(rows: Iterable[Row], config: DataConfig, where: str) -> Iterator[str]:
    rows = iter(rows)
    head = list(islice(rows, SAMPLE))
    sample = [row.values for row in head if not row.error]
    if head and not sample:
        raise UserError(f"{where}, line {head[0].line}: {head[0].error}")
    if not sample:
        return
    columns = find_columns(config, sample, where, labelled=False)
    for position, row in enumerate(chain(head, rows)):
        try:
            if row.error:
                raise RowError(row.error)
            document: Document = document_of(row.values, columns, position)
        except RowError as error:
            raise UserError(f"{where}, line {row.line}: {error}") from None
        yield document.text if document.pair is None else f"{document.text}\n{document.pair}"
