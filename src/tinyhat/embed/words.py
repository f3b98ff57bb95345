"""From pieces to words: the vectors of a document's words, aligned to characters of the original text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tinyhat.types import FloatArray


class Words(NamedTuple):
    """The W words of one document.

    Attributes:
        spans: int32 [W, 2], first character and one past the last of each word in the text.
        vectors: float32 [W, D].
    """

    spans: npt.NDArray[np.int32]
    vectors: FloatArray


def pieces_to_words(
    states_CD: FloatArray, words_C: npt.NDArray[np.int32], offsets: npt.NDArray[np.int32], pooling: str
) -> Words:
    """Pool the pieces of every word.

    Args:
        states_CD: float32 [C, D], states of the content tokens.
        words_C: int32 [C], rising word numbers, -1 for a token of no word.
        offsets: int32 [C, 2], characters of each token.
        pooling: first, last, mean or max of a word's pieces.
    """
    kept = np.flatnonzero(words_C >= 0)
    if not len(kept):
        return Words(np.zeros((0, 2), np.int32), np.zeros((0, states_CD.shape[1]), np.float32))
    numbers = words_C[kept]
    firsts = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    lasts = np.concatenate([firsts[1:], [len(kept)]]) - 1
    pieces = states_CD[kept]
    spans = np.stack([offsets[kept[firsts], 0], offsets[kept[lasts], 1]], axis=1)
    if pooling == "first":
        vectors = pieces[firsts]
    elif pooling == "last":
        vectors = pieces[lasts]
    elif pooling == "max":
        vectors = np.maximum.reduceat(pieces, firsts, axis=0)
    else:
        vectors = np.add.reduceat(pieces, firsts, axis=0).astype(np.float32)
        vectors /= (lasts - firsts + 1)[:, None]
    return Words(spans.astype(np.int32), vectors)
