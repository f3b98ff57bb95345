"""A plain text as passages and sentences: for replay, and for measuring what fine-tuning made of the encoder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tinyhat.config import DataConfig
from tinyhat.data.read import BadRow, read_documents
from tinyhat.errors import UserError
from tinyhat.types import BoolArray, IntArray

PASSAGE = 800  # characters: about 200 tokens
MOST = 8_000_000  # characters that are read of a text
NOT_ASKED = -100
_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z])")


def read_passages(path: str) -> list[str]:
    """Return stretches of neighbouring lines of about PASSAGE characters, in order; at most MOST characters in all.

    Args:
        path: txt, csv, tsv, jsonl or parquet file, plain, .gz or .zst; only its text column counts.

    Raises:
        UserError: no such file, or no text in it.
    """
    if not Path(path).is_file():
        raise UserError(f"{path!r} is not a file: name a text (txt, jsonl, csv or parquet, plain, .gz or .zst)")
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


def sentences(passages: list[str], words: tuple[int, int] = (6, 28)) -> list[str]:
    """Return the sentences of passages that have between ``words[0]`` and ``words[1]`` words, each once, in order."""
    found = (part.strip() for passage in passages for part in _END.split(passage))
    return list(dict.fromkeys(s for s in found if words[0] <= len(s.split()) <= words[1]))


def swapped_pairs(texts: list[str], seed: int) -> tuple[list[str], IntArray]:
    """Swap two neighbouring words in a random half of `texts` (Conneau et al. 2018, task BShift).

    Args:
        texts: N sentences of at least four words.
        seed: of which, and where.

    Returns:
        The N sentences, and 1 for those with swapped words, else 0 (int64 [N]). The words swapped differ.
    """
    random = np.random.default_rng(seed)
    wanted = random.permutation(np.arange(len(texts)) % 2)
    out, done = [], np.zeros(len(texts), np.int64)
    for i, text in enumerate(texts):
        parts = text.split()
        places = [k for k in range(1, len(parts) - 2) if parts[k].lower() != parts[k + 1].lower()]
        if wanted[i] and places:
            k = int(random.choice(places))
            parts[k], parts[k + 1] = parts[k + 1], parts[k]
            done[i] = 1
        out.append(" ".join(parts))
    return out, done


def mask_ids(
    input_ids: IntArray, eligible: BoolArray, mask_id: int, share: float, random: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Choose a share of the tokens; 80% of them become [MASK], 10% a random entry, 10% stay (Devlin et al. 2019, 3.1).

    Args:
        input_ids: int64 [T].
        eligible: bool [V], entries that may be chosen and put in: all but special ones.
        mask_id: of [MASK].
        share: of the tokens.
        random: all chance comes from it.

    Returns:
        The masked ids, and the original ids of the chosen tokens with NOT_ASKED elsewhere, int64 [T] both.
    """
    chosen = eligible[input_ids] & (random.random(len(input_ids)) < share)
    fate = random.random(len(input_ids))
    others = random.choice(np.flatnonzero(eligible), len(input_ids))
    masked = np.where(chosen & (fate < 0.8), mask_id, np.where(chosen & (fate >= 0.9), others, input_ids))
    return masked, np.where(chosen, input_ids, NOT_ASKED)
