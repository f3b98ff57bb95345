"""Truncation by importance: sentences are ranked, the best ones are read, in the order of the text. numpy and scipy."""

from __future__ import annotations

import re
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tinyhat.types import IntArray

Ranking = Literal["random", "tfidf", "textrank"]
RANKINGS: tuple[Ranking, ...] = ("random", "tfidf", "textrank")
_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w+")
DAMPING = 0.85  # Brin and Page 1998, kept by Mihalcea and Tarau 2004
ROUNDS = 50  # 0.85^50 = 3e-4 of the start is left

Scores = npt.NDArray[np.float64]


def sentence_starts(text: str) -> IntArray:
    """Return the character positions where the S sentences of `text` begin, int64 [S], the first one 0."""
    return np.array([0, *(m.end() for m in _END.finditer(text) if m.end() < len(text))], np.int64)


def rank_sentences(text: str, starts: IntArray, ranking: Ranking) -> Scores:
    """Return how important each sentence is within its own document, float64 [S].

    random: drawn from the text's checksum, so that a document is read alike everywhere (Park, Vyas and Shah 2022,
    "Efficient Classification of Long Documents Using Transformers", section 3, with random sentences). tfidf: cosine
    of the sentence's tf-idf to the document's sum (centroid; Radev et al. 2004). textrank: PageRank over the cosines
    of the sentences (Mihalcea and Tarau 2004, with the similarity of LexRank, Erkan and Radev 2004); the matrix of
    similarities is never built, so that memory grows with the words and not with the square of the sentences.

    Args:
        text: the document.
        starts: int64 [S], from `sentence_starts`.
        ranking: which of the three.
    """
    if ranking == "random":
        return np.random.default_rng(zlib.crc32(text.encode("utf-8", "surrogatepass"))).random(len(starts))
    rows = _tfidf(text, starts)
    if ranking == "tfidf":
        centre = np.asarray(rows.sum(axis=0)).ravel()
        return np.asarray(rows @ (centre / max(float(np.linalg.norm(centre)), 1e-12)))
    return _pagerank(rows)


def choose_important(offsets: npt.NDArray[np.int32], text: str, room: int, ranking: Ranking) -> IntArray:
    """Return which tokens are read: whole sentences by rank while they fit, then the beginning of the next one.

    Args:
        offsets: int32 [T, 2] character begin and end of every token of `text`.
        text: the document.
        room: tokens that may be read, fewer than T.
        ranking: how sentences are ranked.

    Returns:
        Ascending token positions, int64 [room].
    """
    starts = sentence_starts(text)
    # by its last character: tokens of byte-level tokenizers begin at the space before them, in the sentence before
    last = np.maximum(offsets[:, 1] - 1, offsets[:, 0])
    sentence = np.searchsorted(starts, last, side="right") - 1
    rank = np.empty(len(starts), np.int64)
    rank[np.argsort(-rank_sentences(text, starts, ranking), kind="stable")] = np.arange(len(starts))
    return np.sort(np.argsort(rank[sentence], kind="stable")[:room]).astype(np.int64)


def _tfidf(text: str, starts: IntArray) -> sparse.csr_matrix:
    """Return tf-idf rows of the sentences, each of length 1 (or 0 without a word); idf counts sentences."""
    vocabulary: dict[str, int] = {}
    columns: list[int] = []
    counts = []
    for begin, end in zip(starts, [*starts[1:], len(text)], strict=True):
        words = _WORD.findall(text[begin:end].lower())
        columns.extend(vocabulary.setdefault(word, len(vocabulary)) for word in words)
        counts.append(len(words))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    shape = (len(starts), max(len(vocabulary), 1))
    rows = sparse.csr_matrix((np.ones(len(columns)), np.array(columns, np.int64), indptr), shape=shape)
    rows.sum_duplicates()
    idf = np.log((1 + shape[0]) / (1 + rows.getnnz(axis=0))) + 1
    rows = rows @ sparse.diags(idf)
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(norms, 1e-12)) @ rows)


def _pagerank(rows: sparse.csr_matrix) -> Scores:
    count = rows.shape[0]
    own = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
    degree = np.asarray(rows @ np.asarray(rows.sum(axis=0)).ravel()) - own
    rank = np.full(count, 1 / count)
    for _ in range(ROUNDS):
        share = np.where(degree > 1e-9, rank / np.maximum(degree, 1e-9), 0.0)
        rank = (1 - DAMPING) / count + DAMPING * (np.asarray(rows @ (rows.T @ share)) - own * share)
    return rank
