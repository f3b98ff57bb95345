"""Words and their TF-IDF weights: one code path for fitting and for a loaded model, equal to scikit-learn's.

Dimension letters: N documents, V words of the vocabulary.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from tinyhat.errors import UserError
from tinyhat.types import FloatArray

WORD = re.compile(r"(?u)\b\w\w+\b")
"""What a word is: two or more letters, digits or underscores, lower-cased; scikit-learn's default pattern."""


@dataclass(frozen=True)
class Tfidf:
    """A vocabulary with its weights.

    Attributes:
        vocabulary: the V words, in column order.
        idf: float32 [V].
    """

    vocabulary: tuple[str, ...]
    idf: FloatArray

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {word: column for column, word in enumerate(self.vocabulary)}

    def transform(self, texts: Sequence[str]) -> tuple[csr_array, list[int]]:
        """Return the float32 [N, V] rows of `texts` and the number of words of each, known or not.

        An entry is ``(1 + ln count) * idf``, then every row is scaled to length 1; a text without a known word is an
        empty row.
        """
        columns, counts, indptr, lengths = array("i"), array("f"), [0], []
        for text in texts:
            words = WORD.findall(text.lower())
            lengths.append(len(words))
            found = sorted((self._columns[w], n) for w, n in Counter(words).items() if w in self._columns)
            columns.extend(column for column, _ in found)
            counts.extend(n for _, n in found)
            indptr.append(len(columns))
        indices = np.frombuffer(columns, dtype=np.int32) if columns else np.zeros(0, np.int32)
        values = np.frombuffer(counts, dtype=np.float32) if counts else np.zeros(0, np.float32)
        values = (1 + np.log(values)) * self.idf[indices]
        rows = np.repeat(np.arange(len(texts)), np.diff(indptr))
        norm = np.sqrt(np.bincount(rows, weights=np.square(values, dtype=np.float64), minlength=len(texts)))
        values = (values / norm[rows]).astype(np.float32)
        # int32 on both sides: scipy's products then need no conversion
        shape = (len(texts), len(self.vocabulary))
        return csr_array((values, indices, np.asarray(indptr, dtype=np.int32)), shape=shape), lengths


def fit_tfidf(texts: Sequence[str], min_df: int) -> Tfidf:
    """Return the words that at least `min_df` of the N `texts` hold, in alphabetical order, with their idf.

    The idf is ``ln((1 + N) / (1 + documents with the word)) + 1`` (scikit-learn's smooth idf).

    Raises:
        UserError: no word is left.
    """
    frequency: Counter[str] = Counter()
    for text in texts:
        frequency.update(set(WORD.findall(text.lower())))
    words = tuple(sorted(word for word, n in frequency.items() if n >= min_df))
    if not words:
        raise UserError(
            f"the linear model finds no word of two or more letters in at least {min_df} of the {len(texts)} training "
            "texts: check which column holds the text"
        )
    df = np.array([frequency[word] for word in words], dtype=np.float64)
    return Tfidf(words, (np.log((1 + len(texts)) / (1 + df)) + 1).astype(np.float32))
