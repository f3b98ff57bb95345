"""`tinyhat embed`: a file of documents becomes vectors in files, part by part, and goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tinyhat.config import DataConfig
from tinyhat.data.read import BadRow, read_documents
from tinyhat.embed.ahead import ahead, cut
from tinyhat.embed.assemble import assemble
from tinyhat.embed.choice import check_pooling
from tinyhat.embed.embedder import CHARACTERS, LOOK_AHEAD, WORD_CHARACTERS, Embedder, load_embedder
from tinyhat.embed.memory import give_back
from tinyhat.embed.parts import Parts, check_facts, clean
from tinyhat.embed.quantize import STORE_TYPES, StoreType
from tinyhat.embed.store import ids_path, manifest_path, shard_paths
from tinyhat.embed.stores import check_output
from tinyhat.embed.tokens import Windows
from tinyhat.errors import UserError, did_you_mean
from tinyhat.run import environment, file_sha256, read_json
from tinyhat.types import Document, FloatArray

PART = LOOK_AHEAD  # documents of a part, if they are no longer than `CHARACTERS`: packs never cross it
SAMPLE = 16  # documents whose deviation from exact vectors is measured
TELL = 10  # seconds between two lines of progress
Say = Callable[[str], None]
Compute = Callable[[Embedder, Parts, Mapping[int, int], str, DataConfig, dict[str, Any], Say], None]


def embed_file(
    model: str | Path,
    source: str,
    to: Sequence[str | Path],
    data: DataConfig,
    words: bool = False,
    pooling: str | None = None,
    dtype: StoreType = "float32",
    shards: int = 1,
    resume: bool = False,
    say: Say = print,
    compute: Compute | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Embed every document of `source` into one or more stores; memory does not grow with their number.

    Args:
        model: as in `load_embedder`.
        source: csv, tsv, jsonl, parquet or txt file.
        to: the stores, by format: .npy, .h5, .parquet, .safetensors, .faiss.
        data: text and id columns.
        words: one vector for each word, not for each document.
        pooling: of tokens, or with `words` of a word's pieces (first, last, mean, max).
        dtype: what is stored: float32, float16, int8 or binary.
        shards: files a store is cut into.
        resume: go on after the last complete part of a stopped run.
        say: where progress goes.
        compute: makes the missing parts, given with the documents of each; None is this process.
        settings: further arguments of `Embedder`.

    Returns:
        The manifest of the first store.

    Raises:
        UserError: whatever is wrong with the input, the settings or the outputs, in one sentence.
    """
    outs = _outputs(to, dtype, shards)
    if words:
        check_pooling(pooling or "mean", words=True)
    if source == "-":
        raise UserError("embed reads its documents twice, to count them first: give a file, not stdin")
    parts = Parts(outs[0].with_name(outs[0].name + ".parts"))
    _may_begin(outs, parts, shards, resume)
    sizes, bad = _count(source, data, words)
    total, count = sum(sizes), len(sizes)
    if shards > total and not words:
        raise UserError(
            f"--shards {shards}: {source} has {total} documents, and no file may be empty: give fewer shards"
        )
    finished = [manifest_path(out) for out in outs if manifest_path(out).exists()] if resume else []
    begun = next((path for path in (parts.facts, *finished) if resume and path.exists()), None)
    if begun is not None and settings.get("budget") is None:
        settings["budget"] = read_json(begun).get("budget")  # found in the memory that was at hand then
    embedder = load_embedder(model, pooling=None if words else pooling, **settings)
    if words and embedder.layers.pooled:
        raise UserError("--words with --layers pooled: that vector is of a document, choose other layers")
    facts = embedder.facts() | {"model": str(model)}  # as search finds it again
    facts |= {
        "words": (pooling or "mean") if words else None,
        "documents": total,
        "part": PART,
        "part_characters": _most(words),
    }
    facts |= {
        "input_sha256": file_sha256(Path(source)),
        "input_columns": data.model_dump(include={"text", "pair", "id"}),
    }
    facts |= {key: environment()[key] for key in ("processor", "python", "packages")}
    for path in finished:
        check_facts(path, facts | {"dtype": dtype})
        if (files := len(read_json(path).get("shards", ()))) != shards:
            raise UserError(f"--resume: {path} is of {files} files, not {shards}: say --shards {files}, or remove it")
    if len(finished) == len(outs):
        say("everything is there already")
        parts.remove()
        return dict(read_json(finished[0]))
    if resume and parts.facts.exists():
        check_facts(parts.facts, facts)
    parts.begin(facts | {"outputs": sorted(parts.outputs() | {parts.place_of(out) for out in outs})})
    done = parts.done(embedder.width)
    todo = {part: size for part, size in enumerate(sizes) if part not in done}
    if resume:
        say(f"{count - len(todo)} of {count} parts are there already")
    (compute or compute_parts)(embedder, parts, todo, source, data, facts, say)
    if bad:
        say(f"{bad} of {total + bad} rows of {source} could not be read and have no vector")
    if not embedder.exact:
        first = next(part_documents(source, data, words))[:SAMPLE]
        facts["deviation"] = deviation(embedder, parts, facts["words"], first)
        say(
            f"largest deviation from --exact over {len(first)} documents: {facts['deviation']:.1e} of a vector's length"
        )
    for out in outs:
        clean(out.parent, out.name)
    manifests = [assemble(parts, count, out, embedder.width, dtype, shards, facts | {"bad_rows": bad}) for out in outs]
    parts.remove()
    return manifests[0]


def part_documents(source: str, data: DataConfig, words: bool) -> Iterator[list[Document]]:
    """Yield the documents of every part; rows that cannot be read are left out.

    Args:
        source: the file.
        data: its columns.
        words: every word gets a vector, so that fewer documents fit in memory.
    """
    return _cut((row for row in read_documents(source, data) if isinstance(row, Document)), words)


def _cut(rows: Iterable[Document], words: bool) -> Iterator[list[Document]]:
    return cut(rows, PART, _most(words), lambda document: len(document.text))


def _most(words: bool) -> int:
    """Return the characters of a part."""
    return WORD_CHARACTERS if words else CHARACTERS


def write_part(
    embedder: Embedder,
    parts: Parts,
    part: int,
    ids: Sequence[str],
    windows: Windows,
    words: str | None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Embed the documents of one part and write it.

    Args:
        embedder: the embedder.
        parts: where.
        part: its number.
        ids: N ids.
        windows: the N documents, tokenised (with words where wanted).
        words: pooling of a word's pieces, or None for a vector a document.
        progress: told how many more documents are done.

    Raises:
        UserError: a vector is not finite, or a window does not fit in memory.
    """
    names, blocks = _vectors(embedder, ids, windows, words, progress)
    finite = np.concatenate([np.isfinite(block).all(axis=1) for block in blocks])
    if not finite.all():
        raise UserError(
            f"the vector of {names[int(finite.argmin())]!r} holds numbers that are not finite: the weights are "
            f"damaged, or the plan {embedder.plan.name} overflows (try --plan fp32)"
        )
    parts.write(part, names, blocks)


def deviation(embedder: Embedder, parts: Parts, words: str | None, first: Sequence[Document]) -> float:
    """Return the largest distance between a vector of the first part and its exact twin, as a share of its length.

    Args:
        embedder: that made the parts.
        parts: complete.
        words: as in `write_part`.
        first: the first documents of the first part.
    """
    embedder.exact = True
    try:
        windows = embedder.read([d.text for d in first], words is not None)
        exact = np.concatenate(_vectors(embedder, [d.id for d in first], windows, words, None)[1])
    finally:
        embedder.exact = False
    found = parts.read(0)[: len(exact)]
    off = np.linalg.norm((found - exact).astype(np.float64), axis=1)
    return float((off / np.maximum(np.linalg.norm(exact, axis=1), 1e-12)).max(initial=0.0))


def _vectors(
    embedder: Embedder,
    ids: Sequence[str],
    windows: Windows,
    words: str | None,
    progress: Callable[[int], None] | None,
) -> tuple[list[Any], list[FloatArray]]:
    """Return the ids of rows and the rows, a document after the other or all at once."""
    if words is None:
        return list(ids), [embedder.embed_windows(windows, progress)]
    found = embedder.word_windows(windows, words, progress)
    names = [
        {"id": name, "begin": begin, "end": end}
        for name, own in zip(ids, found, strict=True)
        for begin, end in own.spans.tolist()
    ]
    return names, [own.vectors for own in found]


def compute_parts(
    embedder: Embedder,
    parts: Parts,
    todo: Mapping[int, int],
    source: str,
    data: DataConfig,
    facts: dict[str, Any],
    say: Say,
) -> None:
    """Make the parts `todo`: reading and tokenising overlap with computing.

    Args:
        embedder: the embedder.
        parts: where.
        todo: numbers of the missing parts, and how many documents each has.
        source: the file of documents.
        data: its columns.
        facts: ``words`` among them.
        say: where progress goes.
    """
    words = facts["words"]

    def read() -> Iterator[tuple[int, list[str], Windows]]:
        for part, chunk in enumerate(
            islice(part_documents(source, data, words is not None), max(todo, default=-1) + 1)
        ):
            if part in todo:
                yield part, [d.id for d in chunk], embedder.read([d.text for d in chunk], words is not None)

    progress = Progress(sum(todo.values()), say)
    for part, ids, windows in ahead(read()):
        write_part(embedder, parts, part, ids, windows, words, progress)
        give_back()


class Progress:
    """Says how many of `total` are done, how fast, and how long the rest takes, every TELL seconds.

    Args:
        total: how many there are.
        say: where lines go.
        what: they are called.
    """

    def __init__(self, total: int, say: Say, what: str = "documents") -> None:
        self.total, self.say, self.what, self.done = total, say, what, 0
        self.begin = self.told = time.monotonic()

    def __call__(self, more: int) -> None:
        """Count `more`."""
        self.done += more
        now = time.monotonic()
        if now - self.told >= TELL:
            self.told = now
            rate = self.done / (now - self.begin)
            left = max(0, self.total - self.done) / rate
            clock = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            self.say(f"{self.done:,} of {self.total:,} {self.what}, {rate:.1f} {self.what}/s, {clock} left")


def _outputs(to: Sequence[str | Path], dtype: StoreType, shards: int) -> list[Path]:
    outs = [Path(out) for out in to]
    if not outs:
        raise UserError("there is no output: name one with --to, for example --to vectors.npy")
    if len(set(outs)) < len(outs):
        raise UserError("--to names a file twice: name each once")
    if dtype not in STORE_TYPES:
        raise UserError(f"--dtype {dtype!r}: give {', '.join(STORE_TYPES)}{did_you_mean(dtype, STORE_TYPES)}")
    if shards < 1:
        raise UserError(f"--shards {shards}: a store has at least one file")
    for out in outs:
        check_output(out, dtype)
        if shards > 1 and out.suffix.lower() == ".faiss":
            raise UserError(f"--to {out} with --shards {shards}: an index is one file, leave --shards out for it")
    return outs


def _may_begin(outs: list[Path], parts: Parts, shards: int, resume: bool) -> None:
    """Nothing that is there already is overwritten, but what an interrupted run of this very command left."""
    begun = parts.outputs() if resume else set()
    for out in outs:
        ours = resume and (parts.place_of(out) in begun or manifest_path(out).exists())
        for path in (*shard_paths(out, shards), manifest_path(out), ids_path(out)):
            if path.exists() and not ours:
                raise UserError(f"{path} is there already: remove it or name another --to")
    if parts.folder.exists() and not resume and any(parts.folder.iterdir()):
        raise UserError(f"{parts.folder} holds an interrupted run: go on with --resume, or remove it")


def _count(source: str, data: DataConfig, words: bool) -> tuple[list[int], int]:
    """Return the documents of each part, and bad rows; what is wrong with the file is said before a model is loaded."""
    bad: list[BadRow] = []
    wrong = 0

    def good() -> Iterator[Document]:
        nonlocal wrong
        for row in read_documents(source, data):
            if isinstance(row, BadRow):
                wrong += 1
                bad[:] = bad or [row]
            elif row.pair is not None:
                raise UserError("embed reads one text a document, not a pair: name its columns with --text")
            else:
                yield row

    sizes = [len(part) for part in _cut(good(), words)]
    if not sizes:
        raise UserError(f"{source} has no document that can be read ({bad[0].error if bad else 'it is empty'})")
    return sizes, wrong
