"""Rows from files: csv, tsv, jsonl, parquet and txt, plain, .gz or .zst, one row at a time with its line number.

A row that cannot be parsed is handed on with an error, so that training can refuse it and prediction can pass over
it. A file that cannot be read at all is a UserError.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinyhat.errors import UserError, did_you_mean

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
NAMED = "csv, tsv, jsonl and parquet files, plain, .gz or .zst"


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        line: 1-based line of the file where the row begins (parquet: number of the row).
        values: column name to value; empty when the row could not be parsed.
        error: what is wrong with the row, or an empty string.
    """

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def format_of(path: Path) -> str | None:
    """Return csv, tsv, jsonl, parquet or txt by the name of a file, compressed or not; None for anything else."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def read_rows(path: str | Path) -> Iterator[Row]:
    """Yield the rows of a file in order, holding a bounded number of them. ``-`` reads JSON lines from stdin.

    Raises:
        UserError: the file is missing, of no known format, or cut off.
    """
    if str(path) == "-":
        yield from _json_rows(_lines(cast(BinaryIO, sys.stdin.buffer), "stdin"))
        return
    path = Path(path)
    kind = _checked_format(path)
    if kind == "parquet":
        yield from _parquet_rows(path)
        return
    lines = _lines(_open(path), str(path))
    if kind == "jsonl":
        yield from _json_rows(lines)
    elif kind == "txt":
        for number, line in lines:
            yield _decoded(number, line)
    else:
        yield from _table_rows(lines, "\t" if kind == "tsv" else ",", path)


def _checked_format(path: Path) -> str:
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist{did_you_mean(path.name, siblings) or ': check the path'}")
    if path.is_dir():
        raise UserError(f"{path} is a folder where a file is needed: name one of the files in it")
    kind = format_of(path)
    if kind is None:
        raise UserError(f"{path} has no format tinyhat knows: it reads {NAMED}")
    return kind


def _open(path: Path) -> BinaryIO:
    import pyarrow as pa

    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        stream = pa.input_stream(str(path), compression=compression)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error}): check its permissions") from None
    return cast(BinaryIO, io.BufferedReader(stream, 1 << 20))


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (1-based number, bytes) of every line; a damaged compressed stream ends in a UserError."""
    try:
        with stream:
            for number, line in enumerate(stream, 1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as error:
        raise UserError(f"{name} is damaged or cut off ({error}): copy or download it again") from None


def _decoded(number: int, line: bytes) -> Row:
    try:
        return Row(number, {"text": line.decode().rstrip("\r\n")})
    except UnicodeDecodeError:
        return Row(number, error="it is not UTF-8 text: save the file as UTF-8")


def _json_rows(lines: Iterator[tuple[int, bytes]]) -> Iterator[Row]:
    for number, line in lines:
        if line.isspace():
            continue
        try:
            values = json.loads(line.decode())
        except UnicodeDecodeError:
            yield Row(number, error="it is not UTF-8 text: save the file as UTF-8")
            continue
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            yield Row(number, error=f"it is not valid JSON ({reason}): write one complete JSON object a line")
            continue
        if not isinstance(values, dict):
            yield Row(number, error=f"it holds a JSON {_kind(values)}: write one JSON object a line")
        else:
            yield Row(number, values)


def _kind(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _table_rows(lines: Iterator[tuple[int, bytes]], delimiter: str, path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default of 131,072 characters is shorter than many documents
    # bad bytes become surrogates here and a sentence below, so that one bad row does not stop a prediction
    decoded = (line.decode(errors="surrogateescape") for _, line in lines)
    reader = csv.reader(decoded, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{path}, line 1: the header cannot be read ({error}): name each column once") from None
    names = [name.strip() for name in header]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"{path} has the column '{min(twice)}' twice: name each column once")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, error=f"it cannot be read ({error}): check its quotes")
            continue
        if not cells:
            continue
        if len(cells) != len(names):
            yield Row(
                line, error=f"it has {len(cells)} cells and the header {len(names)}: quote cells that hold commas"
            )
        elif any(not _clean(cell) for cell in cells):
            yield Row(line, error="it is not UTF-8 text: save the file as UTF-8")
        else:
            yield Row(line, dict(zip(names, cells, strict=True)))


def _clean(cell: str) -> bool:
    return cell.isascii() or not any("\udc80" <= c <= "\udcff" for c in cell)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # a compressed Parquet file cannot be sought in: it is unpacked into memory
        source = pa.BufferReader(_open(path).read()) if path.suffix.lower() in COMPRESSIONS else str(path)
        number = 0
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable Parquet file ({reason}): copy or write it again") from None
