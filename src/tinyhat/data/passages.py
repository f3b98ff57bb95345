"""A plain text as passages and sentences: for replay, and for measuring what fine-tuning made of the encoder."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from tinyhat.config import DataConfig
from tinyhat.data.read import BadRow, read_documents
from tinyhat.errors import UserError
from tinyhat.types import IntArray

PASSAGE = 800  # characters: about 200 tokens
MOST = 8_000_000  # characters that are read of a text
_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))\s+(?=[\"'“‘(\[]*[A-Z])")


def require_text(path: str) -> None:
    """Raise a UserError where `path` is no file."""
    if not Path(path).is_file():
        raise UserError(f"{path!r} is not a file: name a text (txt, jsonl, csv or parquet, plain, .gz or .zst)")


def read_passages(path: str) -> list[str]:
    """Return stretches of neighbouring lines of about PASSAGE characters, in order; at most MOST characters in all.

    Args:
        path: txt, csv, tsv, jsonl or parquet file, plain, .gz or .zst; only its text column counts.

    Raises:
        UserError: no such file, or no text in it.
    """
    require_text(path)
    passages: list[str] = []
    lines: list[str] = []
    size = total = 0
    for document in read_documents(path, DataConfig()):
        for line in () if isinstance(document, BadRow) else document.text.splitlines():
            if line.strip():
                lines.append(line.strip())
                size += len(line)
            if size >= PASSAGE:
                passages.append(" ".join(lines))
                lines, total, size = [], total + size, 0
        if total >= MOST:
            break
    passages += [" ".join(lines)] if lines else []
    if not passages:
        raise UserError(f"{path} holds no text: name another")
    return passages


def neighbours(passages: list[str], words: tuple[int, int] = (5, 20)) -> list[tuple[str, str]]:
    """Return pairs of sentences that follow each other in a passage, no sentence twice, in order.

    Args:
        passages: from `read_passages`.
        words: the fewest and most words of a sentence.
    """
    found: dict[tuple[str, str], None] = {}
    used: set[str] = set()
    for passage in passages:
        parts = [part.strip() for part in _END.split(passage)]
        for pair in pairwise(parts):
            fits = all(words[0] <= len(s.split()) <= words[1] and s not in used for s in pair)
            if fits and pair[0] != pair[1]:
                found[pair] = None
                used.update(pair)
    return list(found)


def parted(pairs: list[tuple[str, str]], seed: int) -> tuple[list[tuple[str, str]], IntArray]:
    """Exchange the second sentences among a random half of N >= 4 pairs.

    Both classes then hold the same kind of sentences; only whether two belong together tells them apart (next sentence
    prediction, Devlin et al. 2019, here for a linear probe).

    Args:
        pairs: sentences that follow each other.
        seed: of which, and how.

    Returns:
        The N pairs, and 1 where the two are neighbours, else 0 (int64 [N]).
    """
    order = np.random.default_rng(seed).permutation(len(pairs))[: len(pairs) // 2]
    mixed = list(pairs)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        mixed[here] = (pairs[here][0], pairs[there][1])
    together = np.ones(len(pairs), np.int64)
    together[order] = 0
    return mixed, together
