"""From parts to the files of a store, its ids and its manifest, the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tinyhat.embed.index import describe_index
from tinyhat.embed.parts import Parts, disk_errors
from tinyhat.embed.quantize import StoreType, calibrate, encode, stored_columns, stored_dtype
from tinyhat.embed.store import ids_path, manifest_path, shard_paths
from tinyhat.embed.stores import WRITERS, Content
from tinyhat.errors import UserError
from tinyhat.run import atomic_path, file_sha256, write_json


def assemble(
    parts: Parts, count: int, out: Path, width: int, dtype: StoreType, shards: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write store `out` from parts 0 to `count`: its files, then the ids, then the manifest that completes it.

    Args:
        parts: complete.
        count: number of parts.
        out: as --to names it.
        width: D of the vectors.
        dtype: what is stored.
        shards: files of the store.
        facts: for the manifest.

    Returns:
        The manifest.

    Raises:
        UserError: fewer rows than files.
    """
    rows = parts.rows(count)
    if not rows:
        raise UserError(f"{out} would be empty: no document has a word")
    if shards > rows:
        raise UserError(
            f"--shards {shards}: there are {rows} rows for {out}, and no file may be empty: give fewer shards"
        )
    calibration = calibrate(parts.blocks(count)) if dtype == "int8" else None
    manifest: dict[str, Any] = {
        "schema": 1,
        "rows": rows,
        "columns": stored_columns(width, dtype),
        "width": width,
        "dtype": dtype,
    }
    manifest |= {"calibration": calibration} | facts
    if out.suffix.lower() == ".faiss":
        metric = "inner product" if facts["normalize"] else "squared Euclidean distance"
        manifest["index"] = {"kind": describe_index(rows, width), "metric": metric}
    files = []
    for shard, path in enumerate(shard_paths(out, shards)):
        begin, end = rows * shard // shards, rows * (shard + 1) // shards

        def blocks(begin: int = begin, end: int = end) -> Iterator[npt.NDArray[Any]]:
            return (encode(block, dtype, calibration) for block in _cut(parts, count, begin, end))

        def ids(begin: int = begin, end: int = end) -> Iterator[Any]:
            return islice(parts.all_ids(count), begin, end)

        content = Content(
            end - begin, stored_columns(width, dtype), stored_dtype(dtype), blocks, ids, manifest, facts["normalize"]
        )
        with disk_errors(path), atomic_path(path) as temporary:
            WRITERS[out.suffix.lower()](temporary, content)
        files.append({"file": path.name, "rows": end - begin, "sha256": file_sha256(path)})
    with disk_errors(ids_path(out)), atomic_path(ids_path(out)) as temporary, temporary.open("w") as stream:
        stream.writelines(json.dumps(i) + "\n" for i in parts.all_ids(count))
    manifest |= {"ids_sha256": file_sha256(ids_path(out)), "shards": files}
    write_json(manifest_path(out), manifest)
    return manifest


def _cut(parts: Parts, count: int, begin: int, end: int) -> Iterator[Any]:
    """Yield the rows `begin` to `end` of all parts."""
    before = 0
    for block in parts.blocks(count):
        piece = block[max(0, begin - before) : max(0, end - before)]
        before += len(block)
        if len(piece):
            yield piece
        if before >= end:
            return
