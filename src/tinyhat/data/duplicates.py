"""Near-duplicate documents: MinHash signatures of word shingles, and locality-sensitive hashing, in numpy.

Broder, On the Resemblance and Containment of Documents, 1997; banding as in Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3. Everything is seeded by constants: the same documents have the same signatures anywhere.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tinyhat.types import IntArray

SHINGLE = 5  # words
PERMUTATIONS = 64
ROWS = 4  # signature rows per band: 16 bands find a pair of Jaccard similarity 0.8 with probability 0.9998
SIMILAR = 0.8
NEIGHBOURS = 8
CHUNK_WORDS = 1 << 18  # a chunk's shingle hashes stay in the processor's cache: twice as fast as one pass over all

Hashes = npt.NDArray[np.uint64]


class _Vocabulary(dict[str, int]):
    """Word to number, with a hash per number: Python's own string hash differs from process to process."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes = array("Q")

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        self.hashes.append(int.from_bytes(digest, "little"))
        return number


def signatures(texts: Sequence[str]) -> Hashes:
    """Return uint64 [N, 64] MinHash signatures of the sets of 5-word shingles (lower case, split at white space).

    The share of equal entries of two rows estimates their Jaccard similarity (standard deviation 0.05 at 0.8). A text
    of fewer than five words is one shingle; a text without words has a row of the largest value.
    """
    vocabulary = _Vocabulary()
    random = np.random.RandomState(0)
    # odd multipliers and a fold of the high bits: multiply-shift hashing (Dietzfelbinger and others, 1997)
    factors = _random(random, PERMUTATIONS) | np.uint64(1)
    offsets = _random(random, PERMUTATIONS)
    found = np.full((len(texts), PERMUTATIONS), np.iinfo(np.uint64).max, dtype=np.uint64)
    rows: list[int] = []
    words: list[int] = []
    ends: list[int] = []
    for row, text in enumerate(texts):
        before = len(words)
        words.extend(map(vocabulary.__getitem__, text.lower().split()))
        if len(words) > before:
            rows.append(row)
            ends.append(len(words))
        if len(words) >= CHUNK_WORDS:
            found[rows] = _chunk(np.array(vocabulary.hashes)[words], np.array(ends), factors, offsets)
            rows, words, ends = [], [], []
    if rows:
        found[rows] = _chunk(np.array(vocabulary.hashes)[words], np.array(ends), factors, offsets)
    return found


def _random(random: np.random.RandomState, count: int) -> Hashes:
    return np.frombuffer(random.bytes(8 * count), dtype="<u8").astype(np.uint64)


def _mix(x: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the input moves every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _chunk(hashed: Hashes, ends: IntArray, factors: Hashes, offsets: Hashes) -> Hashes:
    """Return the signatures of documents (hashes of their words) laid end to end, each of at least one word."""
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    # position p begins a shingle of the words p .. p + 4 of its own document
    shingles = np.zeros(len(hashed), dtype=np.uint64)
    left = np.repeat(ends, lengths) - np.arange(len(hashed))
    for k in range(SHINGLE):
        shifted = np.zeros(len(hashed), dtype=np.uint64)
        shifted[: max(len(hashed) - k, 0)] = hashed[k:]
        shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + np.where(left > k, shifted, np.uint64(0))
    whole = (left >= SHINGLE) | (np.arange(len(hashed)) == np.repeat(starts, lengths))
    shingles = _mix(shingles[whole])
    per_document = np.maximum(lengths - SHINGLE + 1, 1)
    begins = np.concatenate([[0], np.cumsum(per_document)[:-1]])
    found = np.empty((len(ends), len(factors)), dtype=np.uint64)
    for j, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
        permuted = shingles * factor + offset
        found[:, j] = np.minimum.reduceat(permuted ^ (permuted >> np.uint64(32)), begins)
    return found


def similar_pairs(signature: Hashes) -> IntArray:
    """Return int64 [M, 2] pairs of similar documents (estimated Jaccard of at least 0.8), first below second, sorted.

    Within a bucket a document is compared with the bucket's first and with the eight before it, not with all, so that
    a family of a thousand near-identical documents gives nine thousand pairs per band and not half a million.

    Args:
        signature: uint64 [N, 64] of `signatures`; rows of the largest value (no words) are in no pair.
    """
    worded = np.flatnonzero((signature != np.iinfo(np.uint64).max).any(axis=1))
    found = [np.zeros((0, 2), dtype=np.int64)]
    for band in range(0, signature.shape[1], ROWS):
        key = np.zeros(len(worded), dtype=np.uint64)
        for column in range(band, band + ROWS):
            key = _mix(key * np.uint64(0x9E3779B97F4A7C15) + signature[worded, column])
        order = np.argsort(key, kind="stable")
        first = np.flatnonzero(np.concatenate([[True], np.diff(key[order]) != 0]))[: len(order)]
        sizes = np.diff(np.concatenate([first, [len(order)]]))
        leader = order[np.repeat(first, sizes)]
        for other in (leader, *(np.roll(order, back) for back in range(1, NEIGHBOURS + 1))):
            same = (key[order] == key[other]) & (other != order)
            pairs = np.stack([worded[other[same]], worded[order[same]]], axis=1)
            equal = (signature[pairs[:, 0]] == signature[pairs[:, 1]]).mean(axis=1)
            found.append(np.sort(pairs[equal >= SIMILAR], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def clusters(count: int, pairs: IntArray) -> IntArray:
    """Return int64 [count]: the number of the cluster (connected by `pairs`) of every document."""
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = sparse.coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(sparse.csgraph.connected_components(graph, directed=False)[1], dtype=np.int64)
