"""`tinyhat predict` over a corpus by several workers: cut into shards, predict each, put together in input order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tinyhat.data.read import BadRow, read_documents
from tinyhat.embed.write import Progress
from tinyhat.errors import UserError
from tinyhat.predict import load, text_columns
from tinyhat.run import atomic_path, file_sha256, read_json, remove, write_json
from tinyhat.scale.engine import Engine, Work, run_shards
from tinyhat.train.ranks import is_first, leave, wait
from tinyhat.types import Document

SHARD = 1024  # good documents a shard: the look-ahead of a predictor that reads no windows, so that packs are the same


@dataclass(frozen=True)
class Shards:
    """The folder of a sharded prediction: ``in_*.jsonl`` documents, ``out_*.jsonl`` results, ``shards.json``."""

    folder: Path

    @property
    def facts(self) -> Path:
        """What is predicted by what; there when all shards are cut."""
        return self.folder / "shards.json"

    def documents(self, shard: int) -> Path:
        """Return the documents of `shard`."""
        return self.folder / f"in_{shard:06d}.jsonl"

    def results(self, shard: int) -> Path:
        """Return the results of `shard`, there when complete."""
        return self.folder / f"out_{shard:06d}.jsonl"


def predict_sharded(
    run: Path,
    source: str,
    out: Path,
    engine: Engine = "local",
    workers: int = 2,
    top_k: int | None = None,
    plan: str | None = None,
    columns: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Predict a corpus by several workers into `out`, one JSON line a document in input order.

    The folder ``OUT.shards`` beside it holds what is done. It is removed at the end, and found again by the same
    command after an interruption: finished shards are not predicted again. Under torchrun rank 0 cuts and collects.

    Args:
        run: the run folder or its model folder.
        source: csv, tsv, jsonl, parquet or txt file that every worker's machine need not see.
        out: the JSON lines file, on a disk that all workers share.
        engine: as in `run_shards`.
        workers: as in `run_shards`.
        top_k: scores of the k best labels instead of the decided ones.
        plan: numeric plan; None is the one the thresholds were tuned in.
        columns: text, pair, id column names where they cannot be detected.
        say: where progress goes.

    Returns:
        The number of bad rows and of all rows, on rank 0; (0, 0) elsewhere.

    Raises:
        UserError: as `predict`; the shard folder belongs to another prediction.
    """
    shards = Shards(out.with_name(out.name + ".shards").resolve())
    if is_first():
        _cut(shards, run, source, {"top_k": top_k, "plan": plan, "columns": dict(columns or {})})
    wait()
    facts = read_json(shards.facts)
    numbers = list(range(facts["shards"]))  # the same on all ranks; what is done already is passed over
    progress = Progress(len(numbers), say, "shards") if is_first() else None
    run_shards(partial(_worker, run.resolve(), shards, top_k, plan), numbers, engine, workers, progress)
    wait()
    leave()
    if not is_first():
        return 0, 0
    bad = _collect(shards, facts["shards"], out)
    remove(shards.folder)
    return bad, facts["rows"]


def _worker(run: Path, shards: Shards, top_k: int | None, plan: str | None) -> Work:
    classifier = load(run, plan)

    def work(shard: int) -> None:
        if shards.results(shard).exists():
            return
        with atomic_path(shards.results(shard)) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for result in classifier.rows(_read(shards.documents(shard)), top_k):
                stream.write(json.dumps(result, ensure_ascii=False) + "\n")

    return work


def _cut(shards: Shards, run: Path, source: str, settings: dict[str, Any]) -> None:
    """Write the documents into shards, or check that those that are there are of the same prediction."""
    if not Path(source).is_file():
        next(read_documents(source, text_columns(run, {})))  # raises with the nearest name
    wanted = settings | {"source": str(Path(source).resolve()), "source_sha256": file_sha256(Path(source))}
    model = run / "model" if (run / "model").is_dir() else run
    wanted["decision_sha256"] = file_sha256(model / "decision.json")  # which names the weights by their hash
    if shards.facts.exists():
        found = read_json(shards.facts)
        other = [key for key, value in json.loads(json.dumps(wanted)).items() if found.get(key) != value]
        if other:
            raise UserError(
                f"{shards.folder} holds an unfinished prediction with another {other[0]}: run that command again, or "
                "remove the folder"
            )
        return
    remove(shards.folder)
    count = total = 0
    for rows in _chunks(read_documents(source, text_columns(run, settings["columns"]))):
        with atomic_path(shards.documents(count)) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(_dump(row), ensure_ascii=False) + "\n" for row in rows)
        count, total = count + 1, total + len(rows)
    write_json(shards.facts, wanted | {"shards": count, "rows": total})


def _chunks(rows: Iterator[Document | BadRow]) -> Iterator[list[Document | BadRow]]:
    """Yield rows with SHARD good ones among them, the bad rows that follow the last good one included."""
    chunk: list[Document | BadRow] = []
    good = 0
    for row in rows:
        if isinstance(row, Document) and good == SHARD:
            yield chunk
            chunk, good = [], 0
        chunk.append(row)
        good += isinstance(row, Document)
    if chunk:
        yield chunk


def _dump(row: Document | BadRow) -> dict[str, Any]:
    if isinstance(row, BadRow):
        return {"id": row.id, "line": row.line, "error": row.error}
    return {"id": row.id, "text": row.text, "pair": row.pair}


def _read(path: Path) -> Iterator[Document | BadRow]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            yield BadRow(**row) if "error" in row else Document(**row)


def _collect(shards: Shards, count: int, out: Path) -> int:
    """Put the results together in order; return how many rows were bad."""
    bad = 0
    with atomic_path(out.resolve()) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for shard in range(count):
            with shards.results(shard).open(encoding="utf-8") as part:
                lines: Iterable[str] = iter(part)
                while block := list(islice(lines, SHARD)):
                    bad += sum("error" in json.loads(line) for line in block)
                    stream.writelines(block)
    return bad
