"""The files of a store, each written from the parts in one deterministic pass. n rows, D columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyhat.embed.index import write_index
from tinyhat.embed.parts import reserve, write_npy, write_rows
from tinyhat.embed.quantize import StoreType
from tinyhat.errors import UserError, missing_extra

Block = npt.NDArray[Any]
ROWS = 1024  # of an HDF5 chunk and of a Parquet row group
_SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}


@dataclass(frozen=True)
class Content:
    """The rows of one file.

    Attributes:
        rows: n.
        columns: D as stored.
        dtype: of the numbers as stored.
        blocks: gives consecutive rows from the beginning, as often as it is called.
        ids: gives the ids of the rows, likewise.
        facts: what a file says of itself.
        normalized: vectors of length 1.
    """

    rows: int
    columns: int
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Block]]
    ids: Callable[[], Iterator[Any]]
    facts: dict[str, Any]
    normalized: bool

    def chunks(self) -> Iterator[Block]:
        """Yield the rows ROWS by ROWS, however long the blocks are."""
        kept: list[Block] = []
        count = 0
        for block in self.blocks():
            while len(block):
                taken, block = block[: ROWS - count], block[ROWS - count :]
                kept.append(taken)
                count += len(taken)
                if count == ROWS:
                    yield np.concatenate(kept)
                    kept, count = [], 0
        if count:
            yield np.concatenate(kept)


def check_output(path: Path, dtype: StoreType) -> None:
    """Refuse a file that no vectors should be, or cannot be, written to.

    Raises:
        UserError: CSV, another unknown format, a type the format has no place for, a package that is missing.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt", ".json", ".jsonl"):
        raise UserError(
            f"--to {path}: text is no place for vectors, it takes 3 times the space, is slow to read and "
            "rounds numbers; give .npy, .h5, .parquet, .safetensors or .faiss"
        )
    if suffix not in WRITERS:
        raise UserError(f"--to {path} has no format of embeddings: give {', '.join(WRITERS)}")
    if suffix == ".faiss" and dtype != "float32":
        raise UserError(f"--to {path} with --dtype {dtype}: a FAISS index compresses by itself, leave --dtype out")
    package = {".h5": ("h5py", "h5py"), ".faiss": ("faiss", "faiss-cpu")}.get(suffix)
    if package is not None:
        try:
            __import__(package[0])
        except ImportError:
            raise missing_extra(package[1], "embed", f"--to {path}") from None


def _npy(path: Path, content: Content) -> None:
    write_npy(path, (content.rows, content.columns), content.dtype, content.blocks())


def _safetensors(path: Path, content: Content) -> None:
    size = content.rows * content.columns * content.dtype.itemsize
    shape, kind = [content.rows, content.columns], _SAFETENSORS_TYPES[content.dtype.name]
    tensor = {"dtype": kind, "shape": shape, "data_offsets": [0, size]}
    facts = {key: json.dumps(value, ensure_ascii=False) for key, value in content.facts.items()}
    header = json.dumps({"__metadata__": facts, "vectors": tensor}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        write_rows(stream, content.blocks())


def _h5(path: Path, content: Content) -> None:
    import h5py

    _reserve(path, content)
    shape = (content.rows, content.columns)
    chunk = (min(ROWS, max(content.rows, 1)), content.columns)
    with h5py.File(path, "w", libver="latest") as file:  # no times are kept, so the same content is the same bytes
        vectors = file.create_dataset(
            "vectors", shape, content.dtype, chunks=chunk, compression="gzip", compression_opts=1, shuffle=True
        )
        ids = file.create_dataset("ids", (content.rows,), h5py.string_dtype(), chunks=(chunk[0],))
        names, begin = content.ids(), 0
        for block in content.chunks():
            vectors[begin : begin + len(block)] = block
            ids[begin : begin + len(block)] = [_text(i) for i in islice(names, len(block))]
            begin += len(block)
        for key, value in content.facts.items():
            file.attrs[key] = json.dumps(value, ensure_ascii=False)


def _reserve(path: Path, content: Content) -> None:
    """Make sure of the space an HDF5 file can need at most, and release it: on a full disk HDF5 ends the process."""
    names = sum(len(_text(i).encode()) + 64 for i in content.ids())
    most = int(1.01 * content.rows * content.columns * content.dtype.itemsize) + 2 * names + (1 << 20)
    with path.open("wb") as stream:
        reserve(stream, most)
    path.unlink()


def _parquet(path: Path, content: Content) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.from_numpy_dtype(content.dtype), content.columns)
    facts = {key: json.dumps(value, ensure_ascii=False) for key, value in content.facts.items()}
    schema = pa.schema([("id", pa.string()), ("vector", vector)], metadata=facts)
    names = content.ids()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in content.chunks():
            flat = pa.array(np.ascontiguousarray(block).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, type=vector)
            texts = pa.array([_text(i) for i in islice(names, len(block))], pa.string())
            writer.write_table(pa.Table.from_arrays([texts, column], schema=schema))


def _faiss(path: Path, content: Content) -> None:
    write_index(path, content.rows, content.columns, content.chunks, content.normalized)


def _text(identity: Any) -> str:
    """Return an id as text; a word's as JSON."""
    return identity if isinstance(identity, str) else json.dumps(identity, ensure_ascii=False)


WRITERS: dict[str, Callable[[Path, Content], None]] = {
    ".npy": _npy, ".h5": _h5, ".parquet": _parquet, ".safetensors": _safetensors, ".faiss": _faiss,
}  # fmt: skip
