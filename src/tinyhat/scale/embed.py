"""`tinyhat embed`, in this process or by several workers: the parts of a store, each made by whoever is free."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tinyhat.config import DataConfig
from tinyhat.embed.embedder import Embedder, load_embedder
from tinyhat.embed.parts import Parts
from tinyhat.embed.write import Progress, embed_file, part_documents, write_part
from tinyhat.errors import UserError
from tinyhat.predict import text_columns
from tinyhat.run import atomic_path
from tinyhat.scale.engine import Engine, Work, run_shards
from tinyhat.train.ranks import is_first, leave, shared, wait, world_size
from tinyhat.types import Document

Say = Callable[[str], None]
Make = Callable[[], Work]


def embed(
    model: str | Path,
    source: str | Path,
    to: str | Path | Sequence[str | Path],
    columns: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
    engine: Engine | None = None,
    workers: int = 2,
    **settings: Any,
) -> dict[str, Any]:
    """Embed every document of a file: ``tinyhat.embed("minilm", "laws.csv", "laws.npy", pooling="cls")``.

    Args:
        model: a run, a folder with a checkpoint, a hub name, or ``minilm``.
        source: csv, tsv, jsonl, parquet or txt file.
        to: where, one or several; the format follows from the name.
        columns: text and id columns where they cannot be detected.
        say: where progress goes.
        engine: ``ray``: workers on a Ray cluster. Under torchrun the ranks share the documents without it.
        workers: Ray actors.
        settings: as in `tinyhat.embed.write.embed_file` and `tinyhat.embed.embedder.Embedder`, named as the flags.

    Returns:
        The manifest of the (first) store; ``tinyhat.embed.store.read_store`` reads it back.

    Raises:
        UserError: whatever is wrong with the input, the settings or the outputs, in one sentence.
    """
    outs = [to] if isinstance(to, str | Path) else list(to)
    data = text_columns(Path(model), columns or {})
    if engine is not None or world_size() > 1:
        return embed_sharded(model, str(source), outs, data, engine or "local", workers, say, **settings)
    return embed_file(model, str(source), outs, data, say=say, **settings)


def embed_sharded(
    model: str | Path,
    source: str,
    to: Sequence[str | Path],
    data: DataConfig,
    engine: Engine = "local",
    workers: int = 2,
    say: Say = print,
    **settings: Any,
) -> dict[str, Any]:
    """Embed a corpus by several workers: the files, checks and ``--resume`` of `embed_file`, the parts by an engine.

    Under torchrun rank 0 reads, cuts and assembles, and all ranks embed. The folder of parts must be on a disk that all
    workers see, and the model where all of them find it; both are checked by the model's hash.

    Args:
        model: as in `embed_file`.
        source: as in `embed_file`; the workers need not see it.
        to: as in `embed_file`.
        data: text and id columns.
        engine: as in `run_shards`.
        workers: as in `run_shards`.
        say: where progress goes.
        settings: further arguments of `embed_file`.

    Returns:
        The manifest of the first store; empty on other ranks than the first.

    Raises:
        UserError: as `embed_file` and `run_shards`; a worker finds another model.
    """
    run_shards(_nothing, [], engine, workers)  # what is wrong with the engine is said before anything is written
    if not is_first():
        make, todo = shared(None)
        run_shards(make, todo)
        wait()
        leave()
        return {}
    called = []

    def compute(
        embedder: Embedder,
        parts: Parts,
        todo: Mapping[int, int],
        source: str,
        data: DataConfig,
        facts: dict[str, Any],
        say: Say,
    ) -> None:
        called.append(True)
        folder = Parts(parts.folder.resolve())
        _cut(folder, todo, part_documents(source, data, facts["words"] is not None))
        elsewhere = partial(_worker, _name(model), _settings(embedder), facts["model_sha256"], folder, facts["words"])
        _together(elsewhere, sorted(todo))
        here = partial(_work, embedder, folder, facts["words"])
        make = elsewhere if engine == "ray" else lambda: here
        run_shards(make, sorted(todo), engine, workers, Progress(len(todo), say, "parts"))
        wait()

    manifest = embed_file(model, source, to, data, say=say, compute=compute, **settings)
    if not called:  # everything was there; the other ranks wait to be told
        _together(_nothing, [])
        wait()
    leave()
    return manifest


def _together(make: Make, todo: list[int]) -> None:
    """Tell the other ranks what is to be done."""
    shared((make, todo))


def _nothing() -> Work:
    return lambda part: None


def _name(model: str | Path) -> str:
    """Return a name of the model that means the same in another folder."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else str(model)


def _settings(embedder: Embedder) -> dict[str, Any]:
    """Return what makes the same embedder again; the budget too, because packs decide about the last bits."""
    return {
        "layers": embedder.layers,
        "pooling": embedder.pooling,
        "max_tokens": embedder.max_tokens,
        "long": embedder.long,
        "normalize": embedder.normalize,
        "exact": embedder.exact,
        "plan": embedder.plan.name,
        "budget": embedder.budget,
    }


def _worker(model: str, settings: dict[str, Any], sha256: str, parts: Parts, words: str | None) -> Work:
    embedder = load_embedder(model, **settings)
    if embedder.fingerprint() != sha256:
        raise UserError(
            f"a worker finds another model under {model!r} than the one that began: give all the same files"
        )
    return partial(_work, embedder, parts, words)


def _work(embedder: Embedder, parts: Parts, words: str | None, part: int) -> None:
    """Make one part, unless a worker that was lost had finished it."""
    if parts.vectors(part).exists():
        return
    with _input(parts, part).open(encoding="utf-8") as stream:
        ids, texts = zip(*map(json.loads, stream), strict=True)
    write_part(embedder, parts, part, ids, embedder.read(texts, words is not None), words)


def _input(parts: Parts, part: int) -> Path:
    """Return where the documents of `part` lie until the parts are removed: one [id, text] a line."""
    return parts.folder / f"part-{part:06d}.in.jsonl"


def _cut(parts: Parts, todo: Mapping[int, int], documents: Iterator[list[Document]]) -> None:
    for part, chunk in enumerate(islice(documents, max(todo, default=-1) + 1)):
        if part in todo:
            with atomic_path(_input(parts, part)) as temporary, temporary.open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps([d.id, d.text], ensure_ascii=False) + "\n" for d in chunk)
