"""Reading: documents become token ids once, cut to what the encoder reads, with a count of what was cut.

The special tokens come from the tokenizer's own template, so that a document read whole or by its head gives exactly
the ids that the Hugging Face tokenizer gives with ``truncation=True``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from tinyhat.config import ReadingConfig
from tinyhat.errors import UserError
from tinyhat.run import atomic_path
from tinyhat.types import IntArray

CHUNK = 512  # documents handed to the tokenizer at once: enough for its threads, little enough to stay in memory


@dataclass(frozen=True)
class Reading:
    """The token ids of N documents, one sequence each.

    Attributes:
        input_ids: int32 [T], all sequences end to end, special tokens included.
        indptr: int64 [N + 1], where each document's sequence begins.
        tokens_total: int64 [N], tokens in the whole document, special tokens not counted.
        tokens_read: int64 [N], how many of them are in the sequence.
        token_type_ids: int8 [T] for text pairs, else None.
        offsets: int32 [T, 2] character begin and end of every token (0, 0 for special tokens), or None.
    """

    input_ids: npt.NDArray[np.int32]
    indptr: IntArray
    tokens_total: IntArray
    tokens_read: IntArray
    token_type_ids: npt.NDArray[np.int8] | None = None
    offsets: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def lengths(self) -> IntArray:
        """int64 [N], tokens per sequence with its special tokens."""
        return np.diff(self.indptr)


def choose_tokens(length: int, room: int, config: ReadingConfig) -> IntArray:
    """Return which of `length` tokens are read when there is room for `room`: ascending positions, int64.

    head, tail and middle are one stretch; head_tail takes ``head_ratio`` of the room from the beginning and the rest
    from the end (Sun et al. 2019, "How to Fine-Tune BERT", section 5.3.1, there 128 + 382).
    """
    if length <= room:
        return np.arange(length)
    if config.strategy == "head":
        return np.arange(room)
    if config.strategy == "tail":
        return np.arange(length - room, length)
    if config.strategy == "middle":
        start = (length - room) // 2
        return np.arange(start, start + room)
    head = round(room * config.head_ratio)
    return np.concatenate([np.arange(head), np.arange(length - (room - head), length)])


@dataclass(frozen=True)
class _Template:
    """How a tokenizer frames one text or a pair: parts are a special token id, or -1 for text A, -2 for text B."""

    parts: tuple[tuple[int, int], ...]  # (part, token type)

    @property
    def specials(self) -> int:
        return sum(part >= 0 for part, _ in self.parts)

    @classmethod
    def of(cls, tokenizer: Tokenizer, pair: bool) -> _Template:
        word = next((w for w in ("a", "the", "1", ".") if tokenizer.encode(w, add_special_tokens=False).ids), "a")
        encoding = tokenizer.encode(word, word if pair else None, add_special_tokens=True)
        parts: list[tuple[int, int]] = []
        for token, kind, sequence, special in zip(
            encoding.ids, encoding.type_ids, encoding.sequence_ids, encoding.special_tokens_mask, strict=True
        ):
            part = int(token) if special or sequence is None else -1 - int(sequence)
            if part >= 0 or (part, kind) not in parts:
                parts.append((part, kind))
        return cls(tuple(parts))


class Reader:
    """Turns texts into token ids with one tokenizer and one reading configuration.

    Raises:
        UserError: max_tokens leaves no room beside the special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, config: ReadingConfig) -> None:
        # a copy: truncation and padding set by a saved tokenizer.json must not cut before we count
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.config = config
        self._templates = {pair: _Template.of(self.tokenizer, pair) for pair in (False, True)}
        if config.max_tokens <= self._templates[True].specials:
            raise UserError(f"reading.max_tokens = {config.max_tokens} leaves no room beside the special tokens")

    def read(self, texts: Sequence[str], pairs: Sequence[str] | None = None, offsets: bool = False) -> Reading:
        """Tokenise N texts (or pairs), in parallel threads, and cut each to at most max_tokens.

        Args:
            texts: N texts.
            pairs: N second texts, or None.
            offsets: keep the character offsets of every token.
        """
        return _join([self._read_chunk(t, p, offsets) for t, p in _chunks(texts, pairs)], pairs is not None, offsets)

    def read_cached(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Reading:
        """As `read`, kept on disk under a hash of tokenizer, texts and configuration."""
        path = cache_folder() / "tokens" / f"{self._content_hash(texts, pairs)}.npz"
        cached = _load(path)
        if cached is None:
            cached = self.read(texts, pairs)
            _store(path, cached)
        return cached

    def _content_hash(self, texts: Sequence[str], pairs: Sequence[str] | None) -> str:
        digest = hashlib.sha256(b"tinyhat reading 1")
        digest.update(self.tokenizer.to_str().encode())
        digest.update(self.config.model_dump_json().encode())
        for column in (texts, pairs or ()):
            digest.update(b"\x00column")
            for text in column:
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()

    def _read_chunk(self, texts: Sequence[str], pairs: Sequence[str] | None, offsets: bool) -> Reading:
        encode = self.tokenizer.encode_batch if offsets else self.tokenizer.encode_batch_fast
        columns = [encode(list(texts), add_special_tokens=False)]
        if pairs is not None:
            columns.append(encode(list(pairs), add_special_tokens=False))
        template = self._templates[pairs is not None]
        room = self.config.max_tokens - template.specials
        ids: list[npt.NDArray[np.int32]] = []
        kinds: list[npt.NDArray[np.int8]] = []
        spans: list[npt.NDArray[np.int32]] = []
        lengths, total, read = [], [], []
        for encodings in zip(*columns, strict=True):
            rooms = _share(encodings, room)
            chosen = [choose_tokens(len(e), r, self.config) for e, r in zip(encodings, rooms, strict=True)]
            pieces = [np.asarray(e.ids, dtype=np.int32)[c] for e, c in zip(encodings, chosen, strict=True)]
            sequence = [np.array([p], np.int32) if p >= 0 else pieces[-1 - p] for p, _ in template.parts]
            ids.extend(sequence)
            lengths.append(sum(map(len, sequence)))
            total.append(sum(map(len, encodings)))
            read.append(sum(map(len, pieces)))
            if pairs is not None:
                kinds.extend(np.full(len(s), k, np.int8) for s, (_, k) in zip(sequence, template.parts, strict=True))
            if offsets:
                where = [np.array(e.offsets, np.int32).reshape(-1, 2) for e in encodings]
                where = [w[c] for w, c in zip(where, chosen, strict=True)]
                spans.extend(np.zeros((1, 2), np.int32) if p >= 0 else where[-1 - p] for p, _ in template.parts)
        return Reading(
            input_ids=np.concatenate([*ids, np.zeros(0, np.int32)]),
            indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            tokens_total=np.array(total, np.int64),
            tokens_read=np.array(read, np.int64),
            token_type_ids=np.concatenate([*kinds, np.zeros(0, np.int8)]) if pairs is not None else None,
            offsets=np.concatenate([*spans, np.zeros((0, 2), np.int32)]) if offsets else None,
        )


def cache_folder() -> Path:
    """Return where tinyhat keeps what it can compute again: $TINYHAT_CACHE, or the user's cache folder."""
    base = os.environ.get("TINYHAT_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinyhat"


def _share(encodings: tuple[Encoding, ...], room: int) -> list[int]:
    """Room per text: the longer of a pair is cut first, until both are equally long; an odd token is the longer's."""
    if len(encodings) == 1:
        return [room]
    a, b = len(encodings[0]), len(encodings[1])
    half = room // 2
    if a + b <= room:
        return [a, b]
    if a <= half:
        return [a, room - a]
    if b <= half:
        return [room - b, b]
    return [room - half, half] if a > b else [half, room - half]


def _chunks(texts: Sequence[str], pairs: Sequence[str] | None) -> Iterator[tuple[Sequence[str], Sequence[str] | None]]:
    for start in range(0, len(texts), CHUNK):
        yield texts[start : start + CHUNK], None if pairs is None else pairs[start : start + CHUNK]


def _join(parts: list[Reading], pair: bool, offsets: bool) -> Reading:
    lengths = [part.lengths for part in parts]
    empty = np.zeros(0, np.int64)
    return Reading(
        input_ids=np.concatenate([*(p.input_ids for p in parts), np.zeros(0, np.int32)]),
        indptr=np.concatenate([[0], np.cumsum(np.concatenate([*lengths, empty]))]).astype(np.int64),
        tokens_total=np.concatenate([*(p.tokens_total for p in parts), empty]),
        tokens_read=np.concatenate([*(p.tokens_read for p in parts), empty]),
        token_type_ids=np.concatenate([p.token_type_ids for p in parts]) if pair and parts else None,
        offsets=np.concatenate([p.offsets for p in parts]) if offsets and parts else None,
    )


def _store(path: Path, reading: Reading) -> None:
    arrays: dict[str, Any] = {"input_ids": reading.input_ids, "indptr": reading.indptr}
    arrays |= {"tokens_total": reading.tokens_total, "tokens_read": reading.tokens_read}
    if reading.token_type_ids is not None:
        arrays["token_type_ids"] = reading.token_type_ids
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
    except OSError:
        return  # a full or read-only disk costs the cache, not the run


def _load(path: Path) -> Reading | None:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return Reading(**{name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile):
        return None  # absent or damaged: it is computed again
