"""Reading: documents become token ids once, cut to what the encoder reads or into windows.

The special tokens come from the tokenizer's own template, so that a document read whole or by its head gives exactly
the ids that the Hugging Face tokenizer gives with ``truncation=True``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from tinyhat.config import ReadingConfig
from tinyhat.data.importance import RANKINGS, choose_important
from tinyhat.errors import UserError
from tinyhat.run import atomic_path
from tinyhat.types import IntArray

CHUNK = 512  # documents handed to the tokenizer at once: enough for its threads, little enough to stay in memory
CHUNK_CHARACTERS = 4 << 20  # and so many characters: what the tokenizer keeps is some 100 bytes a token


@dataclass(frozen=True)
class Reading:
    """The token ids of N documents: one sequence each, or S windows.

    Attributes:
        input_ids: int32 [T], all sequences end to end, special tokens included.
        indptr: int64 [S + 1], where each sequence begins.
        tokens_total: int64 [N], tokens in the whole document, special tokens not counted.
        tokens_read: int64 [N], how many of them are in at least one of its sequences.
        token_type_ids: int8 [T] for text pairs, else None.
        offsets: int32 [T, 2] character begin and end of every token (0, 0 for special tokens), or None.
        windows: int64 [N + 1], where each document's sequences begin among the S; None: S is N, one sequence each.
    """

    input_ids: npt.NDArray[np.int32]
    indptr: IntArray
    tokens_total: IntArray
    tokens_read: IntArray
    token_type_ids: npt.NDArray[np.int8] | None = None
    offsets: npt.NDArray[np.int32] | None = None
    windows: IntArray | None = None

    def __len__(self) -> int:
        return len(self.indptr if self.windows is None else self.windows) - 1

    @property
    def sequence_lengths(self) -> IntArray:
        """int64 [S], tokens per sequence with its special tokens."""
        return np.diff(self.indptr)

    @property
    def lengths(self) -> IntArray:
        """int64 [N], tokens in all sequences of a document, with their special tokens."""
        return np.diff(self.indptr if self.windows is None else self.indptr[self.windows])

    @property
    def flat(self) -> Reading:
        """The same sequences, each as a document of its own (what is counted by document keeps its old length)."""
        return replace(self, windows=None)

    @property
    def window_counts(self) -> IntArray:
        """int64 [N], sequences per document."""
        return np.ones(len(self), np.int64) if self.windows is None else np.diff(self.windows)


def choose_tokens(length: int, room: int, config: ReadingConfig) -> IntArray:
    """Return which of `length` tokens are read when there is room for `room`: ascending positions, int64.

    head, tail and middle are one stretch; head_tail takes ``head_ratio`` of the room from the beginning and the rest
    from the end (Sun et al. 2019, "How to Fine-Tune BERT", section 5.3.1, there 128 + 382). What needs the text itself
    is in `data.importance`.
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


def window_spans(length: int, room: int, step: int, title: int = 0) -> list[tuple[int, int]]:
    """Return begin and end of the windows over `length` tokens: together they cover every token, in order.

    Args:
        length: tokens of the document.
        room: tokens of the first window.
        step: tokens between the starts of windows, at most ``room - title``.
        title: tokens repeated at the beginning of all windows but the first, which have so much less room.
    """
    spans = [(0, min(length, room))]
    while spans[-1][1] < length:
        begin = spans[-1][1] - (room - title) + step  # the first window is longer and counts from its end
        spans.append((begin, min(length, begin + room - title)))
    return spans


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
        room = config.max_tokens - self._templates[False].specials
        step = config.stride or room - config.title_tokens
        if config.strategy == "windows" and not 0 < step <= room - config.title_tokens:
            raise UserError(
                f"reading.stride = {step} with reading.title_tokens = {config.title_tokens} leaves tokens unread "
                f"between windows of {room} tokens: their sum must be at most {room}"
            )

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
        digest = hashlib.sha256(b"tinyhat reading 3")
        digest.update(self.tokenizer.to_str().encode())
        digest.update(self.config.model_dump_json(exclude={"vote", "vote_k", "learn", "max_windows"}).encode())
        for column in (texts, pairs or ()):
            digest.update(b"\x00column")
            for text in column:
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()

    def _read_chunk(self, texts: Sequence[str], pairs: Sequence[str] | None, offsets: bool) -> Reading:
        windows = self.config.strategy == "windows"
        if windows and pairs is not None:
            raise UserError("reading.strategy = 'windows' is for single texts: pairs are cut, take another strategy")
        where = offsets or self.config.strategy in RANKINGS or (windows and self.config.title_tokens > 0)
        encode = self.tokenizer.encode_batch if where else self.tokenizer.encode_batch_fast
        columns = [texts] if pairs is None else [texts, pairs]
        encoded = [encode(list(column), add_special_tokens=False) for column in columns]
        parts = _Parts(self._templates[pairs is not None], pairs is not None, offsets)
        room = self.config.max_tokens - parts.template.specials
        total, read, counts = [], [], []
        for document in zip(*columns, *encoded, strict=True):
            own: tuple[str, ...] = document[: len(columns)]
            encodings: tuple[Encoding, ...] = document[len(columns) :]
            total.append(sum(map(len, encodings)))
            if windows:
                pieces = self._windows(encodings[0], own[0], room)
                for piece in pieces:
                    parts.add(encodings, [piece])
                read.append(total[-1])
                counts.append(len(pieces))
                continue
            chosen = [self._choose(e, t, r) for e, t, r in zip(encodings, own, _share(encodings, room), strict=True)]
            parts.add(encodings, chosen)
            read.append(sum(map(len, chosen)))
        return parts.reading(total, read, counts if windows else None)

    def _choose(self, encoding: Encoding, text: str, room: int) -> IntArray:
        strategy = self.config.strategy
        if strategy in RANKINGS and len(encoding) > room:
            return choose_important(_offsets(encoding), text, room, strategy)
        return choose_tokens(len(encoding), room, self.config)

    def _windows(self, encoding: Encoding, text: str, room: int) -> list[IntArray]:
        """Return the token positions of every window."""
        title = np.zeros(0, np.int64)
        if self.config.title_tokens and len(encoding) > room:
            end = text.find("\n", len(text) - len(text.lstrip()))
            within = _offsets(encoding)[: self.config.title_tokens, 1] <= end
            title = np.flatnonzero(within)
        step = self.config.stride or room - len(title)
        spans = window_spans(len(encoding), room, step, len(title))
        return [
            np.arange(*span) if not i else np.concatenate([title, np.arange(*span)]) for i, span in enumerate(spans)
        ]


class _Parts:
    """Sequences in the making."""

    def __init__(self, template: _Template, pair: bool, offsets: bool) -> None:
        self.template, self.pair, self.offsets = template, pair, offsets
        self.ids: list[npt.NDArray[np.int32]] = []
        self.kinds: list[npt.NDArray[np.int8]] = []
        self.spans: list[npt.NDArray[np.int32]] = []
        self.lengths: list[int] = []

    def add(self, encodings: tuple[Encoding, ...], chosen: Sequence[IntArray]) -> None:
        """Add one sequence: the `chosen` token positions of a text, or of both texts of a pair."""
        parts = self.template.parts
        pieces = [np.asarray(e.ids, dtype=np.int32)[c] for e, c in zip(encodings, chosen, strict=True)]
        sequence = [np.array([p], np.int32) if p >= 0 else pieces[-1 - p] for p, _ in parts]
        self.ids.extend(sequence)
        self.lengths.append(sum(map(len, sequence)))
        if self.pair:
            self.kinds.extend(np.full(len(s), k, np.int8) for s, (_, k) in zip(sequence, parts, strict=True))
        if self.offsets:
            where = [_offsets(e)[c] for e, c in zip(encodings, chosen, strict=True)]
            self.spans.extend(np.zeros((1, 2), np.int32) if p >= 0 else where[-1 - p] for p, _ in parts)

    def reading(self, total: list[int], read: list[int], windows: list[int] | None) -> Reading:
        """Return all that was added; `windows` are the sequences of each document, None for one each."""
        return Reading(
            input_ids=np.concatenate([*self.ids, np.zeros(0, np.int32)]),
            indptr=_ends(self.lengths),
            tokens_total=np.array(total, np.int64),
            tokens_read=np.array(read, np.int64),
            token_type_ids=np.concatenate([*self.kinds, np.zeros(0, np.int8)]) if self.pair else None,
            offsets=np.concatenate([*self.spans, np.zeros((0, 2), np.int32)]) if self.offsets else None,
            windows=None if windows is None else _ends(windows),
        )


def _offsets(encoding: Encoding) -> npt.NDArray[np.int32]:
    return np.array(encoding.offsets, np.int32).reshape(-1, 2)


def _ends(counts: Sequence[int] | IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


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
    start = characters = 0
    for end in range(1, len(texts) + 1):
        characters += len(texts[end - 1]) + (len(pairs[end - 1]) if pairs is not None else 0)
        if end == len(texts) or end - start == CHUNK or characters > CHUNK_CHARACTERS:
            yield texts[start:end], None if pairs is None else pairs[start:end]
            start, characters = end, 0


def _join(parts: list[Reading], pair: bool, offsets: bool) -> Reading:
    empty = np.zeros(0, np.int64)
    lengths = [*(part.sequence_lengths for part in parts), empty]
    counts = [part.window_counts for part in parts]
    windowed = any(part.windows is not None for part in parts)
    return Reading(
        input_ids=np.concatenate([*(p.input_ids for p in parts), np.zeros(0, np.int32)]),
        indptr=_ends(np.concatenate(lengths)),
        tokens_total=np.concatenate([*(p.tokens_total for p in parts), empty]),
        tokens_read=np.concatenate([*(p.tokens_read for p in parts), empty]),
        token_type_ids=np.concatenate([p.token_type_ids for p in parts]) if pair and parts else None,
        offsets=np.concatenate([p.offsets for p in parts]) if offsets and parts else None,
        windows=_ends(np.concatenate(counts)) if windowed else None,
    )


def _store(path: Path, reading: Reading) -> None:
    arrays: dict[str, Any] = {"input_ids": reading.input_ids, "indptr": reading.indptr}
    arrays |= {"tokens_total": reading.tokens_total, "tokens_read": reading.tokens_read}
    if reading.token_type_ids is not None:
        arrays["token_type_ids"] = reading.token_type_ids
    if reading.windows is not None:
        arrays["windows"] = reading.windows
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
