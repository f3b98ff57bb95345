"""Numbered parts: the only state that an interrupted embedding leaves, each there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tinyhat.errors import UserError
from tinyhat.run import atomic_path, read_json, remove, write_json
from tinyhat.types import FloatArray


@dataclass(frozen=True)
class Parts:
    """The folder of parts beside a store: ``facts.json``, and per part ``.ids.jsonl`` and then ``.npy``."""

    folder: Path

    @property
    def facts(self) -> Path:
        """What is embedded by what; there before the first part."""
        return self.folder / "facts.json"

    def vectors(self, part: int) -> Path:
        """Return the float32 vectors of `part`; there when the part is complete."""
        return self.folder / f"part-{part:06d}.npy"

    def ids(self, part: int) -> Path:
        """Return the ids of `part`, one JSON value a row."""
        return self.folder / f"part-{part:06d}.ids.jsonl"

    def place_of(self, out: Path) -> str:
        """Return where a store lies, seen from this folder: the same when both are moved."""
        return os.path.relpath(out.resolve(), self.folder.resolve())

    def outputs(self) -> set[str]:
        """Return the places of the stores that these parts are for; none where nothing has begun."""
        return set(read_json(self.facts).get("outputs", ())) if self.facts.exists() else set()

    def begin(self, facts: dict[str, Any]) -> None:
        """Start a new folder, or go on with one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.facts, facts)

    def done(self, width: int) -> set[int]:
        """Return the numbers of complete parts, after removing what a killed process left half written.

        Raises:
            UserError: a part has vectors of another width than `width`, or is damaged.
        """
        clean(self.folder)
        found = set()
        for path in sorted(self.folder.glob("part-*.npy")):
            part = int(path.stem.removeprefix("part-"))
            try:
                shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            except (ValueError, OSError) as error:
                raise UserError(f"{path} is damaged ({error}): remove it, --resume computes it again") from None
            if shape[1:] != (width,):
                raise UserError(f"--resume: {path} has vectors of {shape[-1]} numbers, these have {width}: remove it")
            found.add(part)
        return found

    def write(self, part: int, ids: Sequence[Any], blocks: Sequence[FloatArray]) -> None:
        """Write a part, its rows in blocks of [n, D]: ids first, because the vectors say that it is complete."""
        assert len(ids) == sum(map(len, blocks))
        with disk_errors(self.ids(part)), atomic_path(self.ids(part)) as temporary:
            temporary.write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in ids), encoding="utf-8")
        with disk_errors(self.vectors(part)), atomic_path(self.vectors(part)) as temporary:
            write_npy(temporary, (len(ids), blocks[0].shape[1]), blocks[0].dtype, iter(blocks))

    def read(self, part: int) -> FloatArray:
        """Return the vectors of a part, float32 [n, D], in memory: a map would count as ours while pages are kept."""
        found: FloatArray = np.load(self.vectors(part), allow_pickle=False)
        return found

    def blocks(self, count: int) -> Iterator[FloatArray]:
        """Yield the vectors of parts 0 to `count`."""
        for part in range(count):
            yield self.read(part)

    def rows(self, count: int) -> int:
        """Return the rows of parts 0 to `count`."""
        return sum(np.load(self.vectors(p), mmap_mode="r", allow_pickle=False).shape[0] for p in range(count))

    def all_ids(self, count: int) -> Iterator[Any]:
        """Yield the ids of parts 0 to `count`, row by row."""
        for part in range(count):
            with self.ids(part).open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def remove(self) -> None:
        """Remove the folder; its facts go last, so that what is left of it after a kill can still be recognised."""
        for path in sorted(self.folder.glob("part-*")):
            path.unlink()
        remove(self.folder)


def check_facts(path: Path, wanted: dict[str, Any]) -> None:
    """Raise a UserError where the facts (or the manifest) at `path` differ from those `wanted`."""
    read = read_json(path)
    found = read if isinstance(read, dict) else {}
    other = next((k for k, v in json.loads(json.dumps(wanted)).items() if found.get(k) != v), None)
    if other is not None:
        raise UserError(
            f"--resume: {path} is of another {other} ({_short(found.get(other))}, now {_short(wanted[other])}): run "
            "the command it began with, or remove it"
        )


def write_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterator[npt.NDArray[Any]]) -> None:
    """Write an .npy file: its header, then rows as they come.

    Args:
        path: where.
        shape: of the whole array, known before.
        dtype: of the whole array.
        blocks: consecutive rows.
    """
    with path.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        write_rows(stream, blocks)


def write_rows(stream: BinaryIO, blocks: Iterator[npt.NDArray[Any]]) -> None:
    """Write the bytes of blocks; numpy's own ``tofile`` would not say why it stopped on a full disk."""
    for block in blocks:
        stream.write(np.ascontiguousarray(block).data)


def reserve(stream: BinaryIO, size: int) -> None:
    """Make sure of the first `size` bytes of a file, where the system can: a full disk is said now, and in words."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def clean(folder: Path, name: str = "") -> None:
    """Remove temporary files and folders of killed processes from `folder`, those for `name` or all."""
    for leftover in folder.glob(f".{name}*.tmp"):
        if leftover.name.split(".")[-2].isdigit():
            remove(leftover)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Let a full disk be a full disk, also where HDF5, Arrow or FAISS report it in words of their own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        code = getattr(error, "errno", None)
        text = str(error)
        for known in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if code == known or os.strerror(known) in text or f"errno = {known}" in text:
                raise OSError(known, os.strerror(known), str(path)) from error
        raise


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
