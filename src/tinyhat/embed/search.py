"""`tinyhat search`: the nearest rows of a store to a query that the same model turns into a vector.

Q queries, N rows, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from tinyhat.config import DataConfig
from tinyhat.data.read import BadRow, read_documents
from tinyhat.embed.choice import Layers
from tinyhat.embed.embedder import Embedder, load_embedder, normalized
from tinyhat.embed.nearest import Rows, open_rows
from tinyhat.errors import UserError
from tinyhat.types import FloatArray, IntArray

CHUNK = 256  # queries embedded and searched together


class Hit(NamedTuple):
    """One row that was found.

    Attributes:
        id: as in the store: a document's id, or with words a dictionary with id, begin and end.
        score: the cosine, larger is nearer; or the squared Euclidean distance where the index has that.
    """

    id: Any
    score: float


class Index:
    """A store with the embedder its rows were made by.

    Args:
        path: the store by the name `embed --to` gave it.
        model: where the encoder lies now; None takes the manifest's word for it.

    Attributes:
        measure: what a hit's number is: ``score`` (cosine) or ``distance`` (squared Euclidean).

    Raises:
        UserError: no store there, or the encoder is not the one the rows were made by.
    """

    def __init__(self, path: str | Path, model: str | Path | None = None) -> None:
        self.path = Path(path)
        self.rows: Rows = open_rows(self.path)
        self.manifest = self.rows.manifest
        self.measure = self.rows.measure
        self.embedder = _same_embedder(self.manifest, self.path, model)

    def __len__(self) -> int:
        return len(self.rows.ids)

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return the `k` nearest rows (all, where there are fewer) of each query, nearest first.

        Args:
            queries: Q texts.
            k: how many.
        """
        found: list[list[Hit]] = []
        for start in range(0, len(queries), CHUNK):
            vectors = self.embedder.embed(list(queries[start : start + CHUNK]))
            found += [self._hits(*pair) for pair in zip(*self.nearest(vectors, k), strict=True)]
        return found

    def nearest(self, vectors_QD: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Return rows int64 [Q, k] and their scores float32 [Q, k] for vectors float32 [Q, D] of this embedder."""
        wanted = min(k, len(self))
        queries = vectors_QD if self.measure == "distance" else normalized(vectors_QD)
        return self.rows.nearest(queries, wanted)

    def _hits(self, rows_K: IntArray, scores_K: FloatArray) -> list[Hit]:
        # an inverted index may find fewer than k in the lists it visits: -1
        return [Hit(self.rows.ids[r], float(s)) for r, s in zip(rows_K, scores_K, strict=True) if r >= 0]


def search(
    index: str | Path, queries: str | Sequence[str], k: int = 10, model: str | Path | None = None
) -> list[Hit] | list[list[Hit]]:
    """Find the nearest documents: ``tinyhat.search("laws.npy", "fishing quotas in the Baltic")[0].id``.

    Args:
        index: a store by the name `embed --to` gave it.
        queries: one text, or Q texts.
        k: how many a query gets.
        model: where the encoder lies now, if it has moved.

    Returns:
        The hits of the text, or a list of hits for each of Q texts; nearest first.

    Raises:
        UserError: no store there, or index and model do not match.
    """
    many = [queries] if isinstance(queries, str) else list(queries)
    found = Index(index, model).search(many, k)
    return found[0] if isinstance(queries, str) else found


def search_lines(
    index: str | Path,
    query: str | None,
    source: str | None,
    k: int = 10,
    model: str | Path | None = None,
    columns: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Yield one JSON line a query: ``id`` (of a file's document) or ``query``, and ``hits`` with id and score each.

    Args:
        index: a store.
        query: one text, or None.
        source: a file of texts, or None.
        k: how many a query gets.
        model: where the encoder lies now, if it has moved.
        columns: text and id columns of `source` where they cannot be detected.

    Raises:
        UserError: both or neither of `query` and `source`; as `Index`.
    """
    if (query is None) == (source is None):
        raise UserError("search takes one query, or a file of them with --input: give one of the two")
    opened = Index(index, model)
    if query is not None:
        yield _line({"query": query}, opened.search([query], k)[0], opened.measure)
        return
    rows = read_documents(str(source), DataConfig(**{key: v for key, v in (columns or {}).items() if v}))
    for first in rows:
        chunk = list(chain([first], islice(rows, CHUNK - 1)))
        hits = iter(opened.search([row.text for row in chunk if not isinstance(row, BadRow)], k))
        for row in chunk:
            if isinstance(row, BadRow):
                yield json.dumps({"id": row.id, "error": row.error}, ensure_ascii=False)
            else:
                yield _line({"id": row.id}, next(hits), opened.measure)


def _line(query: dict[str, Any], hits: list[Hit], measure: str) -> str:
    shown = [{"id": hit.id, measure: round(hit.score, 6)} for hit in hits]
    return json.dumps(query | {"hits": shown}, ensure_ascii=False)


def _same_embedder(manifest: Mapping[str, Any], path: Path, model: str | Path | None) -> Embedder:
    """Load the embedder as the manifest describes it, and check that it is that one."""
    name = str(manifest["model"] if model is None else model)
    facts = manifest["layers"]
    weights = tuple(facts["weights"]) if facts["weights"] else None
    layers = Layers(facts["name"], tuple(facts["indices"]), facts["combine"], weights)
    same = {key: manifest[key] for key in ("pooling", "max_tokens", "long", "normalize", "plan")}
    try:
        embedder = load_embedder(name, layers=layers, **same)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(
            f"{path} was made by the model {name!r}, which cannot be loaded here ({error}): say where it "
            "lies with --model"
        ) from None
    if embedder.fingerprint() != manifest["model_sha256"]:
        raise UserError(
            f"{path} was made by another model than {name!r} (their weights or tokenizers differ): name the right one "
            "with --model, or embed the documents again"
        )
    return embedder
