"""Reading what `tinyhat embed` wrote, whatever the format: ids, vectors, manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinyhat.errors import UserError, did_you_mean, missing_extra
from tinyhat.run import read_json

FORMATS = (".npy", ".h5", ".parquet", ".safetensors", ".faiss")


_NEEDED = {
    "rows", "columns", "width", "dtype", "shards",
    "model", "model_sha256", "layers", "pooling", "max_tokens", "long", "normalize", "plan",
}  # fmt: skip


class Store(NamedTuple):
    """A finished store.

    Attributes:
        ids: one a row: the document's id, or with words a dictionary with id, begin and end.
        vectors: [N, D] as stored (float32, float16, int8, or uint8 with 8 dimensions a byte for binary); one .npy file
            is a memory map, what lies in several files or another format is read into memory.
        manifest: how it came about; ``calibration`` says what int8 means.
    """

    ids: list[Any]
    vectors: npt.NDArray[Any]
    manifest: dict[str, Any]


def manifest_path(out: Path) -> Path:
    """Return where the manifest of store `out` lies."""
    return out.with_name(out.name + ".manifest.json")


def ids_path(out: Path) -> Path:
    """Return where the ids of store `out` lie: one JSON value a line, in the order of rows."""
    return out.with_name(out.name + ".ids.jsonl")


def shard_paths(out: Path, shards: int) -> list[Path]:
    """Return the files of a store: itself, or ``name-00000-of-00004.npy`` and so on beside it."""
    if shards == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i:05d}-of-{shards:05d}{out.suffix}") for i in range(shards)]


def read_store(path: str | Path) -> Store:
    """Read a store by the name it was written to (``--to``); its parts may lie in several files.

    Raises:
        UserError: nothing there, no manifest or ids beside it, or files that do not fit the manifest.
    """
    out = Path(path)
    manifest, ids = read_manifest(out), read_ids(out)
    files = [out.with_name(shard["file"]) for shard in manifest["shards"]]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is missing, a part of {out}: copy it beside its manifest or embed again")
    found = [read_vectors(file) for file in files]
    vectors = found[0] if len(found) == 1 else np.concatenate(found)
    if len(vectors) != len(ids) or len(ids) != manifest["rows"] or vectors.shape[1] != manifest["columns"]:
        raise UserError(
            f"{out} has {len(vectors)} vectors of {vectors.shape[1]} numbers and {len(ids)} ids, its manifest says "
            f"{manifest['rows']} of {manifest['columns']}: they do not belong together, embed again"
        )
    return Store(ids, vectors, manifest)


def read_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest of store `out`.

    Raises:
        UserError: no store there, or a manifest that lacks what `embed` writes.
    """
    path = manifest_path(out)
    if not path.exists():
        raise UserError(_missing(out))
    manifest = read_json(path)
    lacking = sorted(_NEEDED - set(manifest)) if isinstance(manifest, dict) else ["everything"]
    if lacking:
        raise UserError(f"{path} lacks {lacking[0]}: it was edited, or 'tinyhat embed' did not write it; embed again")
    return manifest


def read_ids(out: Path) -> list[Any]:
    """Return the ids of store `out`, row by row.

    Raises:
        UserError: they are missing or damaged.
    """
    path = ids_path(out)
    if not path.exists():
        raise UserError(f"{path} is missing: without it nobody knows whose the rows are; embed again")
    try:
        with path.open(encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}): copy it again or embed again") from None


def read_vectors(file: Path) -> npt.NDArray[Any]:
    """Return the vectors of one file by its format, [n, D]; .npy as a read-only memory map.

    Raises:
        UserError: a format that tinyhat does not write, a damaged file, or the package that reads it is missing.
    """
    try:
        return _READERS[file.suffix.lower()](file)
    except KeyError:
        raise UserError(f"{file} has no format of embeddings: there are {', '.join(FORMATS)}") from None
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is damaged or cut off ({reason}): copy it again or embed again") from None


def _missing(out: Path) -> str:
    beside = [p.name.removesuffix(".manifest.json") for p in out.parent.glob("*.manifest.json")]
    if out.exists():
        return f"{out} has no manifest beside it ({manifest_path(out).name}): it is no store that 'tinyhat embed' wrote"
    return f"{out} does not exist{did_you_mean(out.name, beside) or ': give what --to named'}"


def _npy(file: Path) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return found


def _h5(file: Path) -> npt.NDArray[Any]:
    try:
        import h5py
    except ImportError:
        raise missing_extra("h5py", "embed", "reading .h5") from None
    with h5py.File(file, "r") as stored:
        return np.asarray(stored["vectors"])


def _parquet(file: Path) -> npt.NDArray[Any]:
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["vector"])
    column = table["vector"]
    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks]
    return np.concatenate(chunks)


def _safetensors(file: Path) -> npt.NDArray[Any]:
    from safetensors.numpy import load_file

    return load_file(file)["vectors"]


def _faiss(file: Path) -> npt.NDArray[Any]:
    try:
        import faiss
    except ImportError:
        raise missing_extra("faiss-cpu", "embed", "reading .faiss") from None
    index = faiss.read_index(str(file))
    if hasattr(index, "make_direct_map"):
        index.make_direct_map()
    found: npt.NDArray[Any] = index.reconstruct_n(0, index.ntotal)
    return found


_READERS = {".npy": _npy, ".h5": _h5, ".parquet": _parquet, ".safetensors": _safetensors, ".faiss": _faiss}
