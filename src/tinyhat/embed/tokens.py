"""Documents as windows: every token of a document of any length is in at least one sequence the encoder can read.

N documents, S windows, T tokens of all windows, C content tokens (special tokens not counted) of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinyhat.data.reading import Reading
from tinyhat.errors import UserError
from tinyhat.types import IntArray, Pack

Long = Literal["windows", "truncate"]


@dataclass(frozen=True)
class Windows:
    """The token ids of N documents cut into S windows.

    Attributes:
        input_ids: int32 [T], windows end to end, each framed by the special tokens.
        slots: int32 [T], the place each token has in its document, special tokens counted once a document: those that
            begin come first, those that end come last. Overlapping windows name a slot twice.
        cu_windows: int64 [S + 1], where each window begins.
        cu_documents: int64 [N + 1], each document's first window.
        sizes: int64 [N], slots of each document.
        tokens_total: int64 [N], content tokens of the whole document.
        tokens_read: int64 [N], of these the ones in a window.
        words: per document int32 [C], which word a content token is of (-1: none), or None where not asked for.
        offsets: per document int32 [C, 2], characters of every content token, or None where not asked for.
    """

    input_ids: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    cu_windows: IntArray
    cu_documents: IntArray
    sizes: IntArray
    tokens_total: IntArray
    tokens_read: IntArray
    words: list[npt.NDArray[np.int32]] | None = None
    offsets: list[npt.NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self.cu_documents) - 1

    @property
    def lengths(self) -> IntArray:
        """int64 [S], tokens of every window."""
        return np.diff(self.cu_windows)

    @property
    def tokens(self) -> IntArray:
        """int64 [N], tokens of all windows of each document."""
        return np.diff(self.cu_windows[self.cu_documents])

    def pack(self, windows: IntArray, first_position: int) -> Pack:
        """Lay `windows` (int64 [S'], in this order) end to end; ``rows`` holds their numbers."""
        lengths = self.lengths[windows]
        cu = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(cu[-1]) - np.repeat(cu[:-1], lengths)
        source = np.repeat(self.cu_windows[windows], lengths) + within
        return Pack(
            input_ids=self.input_ids[source].astype(np.int64),
            position_ids=within + first_position,
            cu_seqlens=cu.astype(np.int32),
            max_seqlen=int(lengths.max(initial=0)),
            sequence_doc=np.arange(len(windows)),
            rows=windows,
        )

    def slots_of(self, windows: IntArray) -> list[npt.NDArray[np.int32]]:
        """Return the slots of each of `windows`."""
        return [self.slots[self.cu_windows[w] : self.cu_windows[w + 1]] for w in windows]


class WindowReader:
    """Turns texts into windows.

    Args:
        tokenizer: a Rust tokenizer without truncation and padding (`backend_tokenizer`).
        max_tokens: most tokens of a window, special tokens included.
        long: what becomes of longer documents: windows, or their head alone.

    Raises:
        UserError: max_tokens leaves no room beside the special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, long: Long = "windows") -> None:
        self.tokenizer = tokenizer
        self.begin, self.end = _frame(tokenizer)
        self.room, self.long = max_tokens - len(self.begin) - len(self.end), long
        if self.room < 1:
            raise UserError(f"--max-tokens {max_tokens} leaves no room beside the special tokens")

    def read(self, texts: Sequence[str], words: bool = False) -> Windows:
        """Tokenise N texts in the tokenizer's threads and cut them into windows.

        Windows are as few as possible, all full, and spread evenly from the first token to the last, so that what
        overlaps is what would have been padding.

        Args:
            texts: N texts.
            words: keep word numbers and character offsets.
        """
        encode = self.tokenizer.encode_batch if words else self.tokenizer.encode_batch_fast
        encodings = encode(list(texts), add_special_tokens=False)
        ids: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
        slots: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
        lengths: list[int] = []
        counts: list[int] = []
        first, last = len(self.begin), len(self.end)
        total = np.array([len(e) for e in encodings], np.int64)
        read = np.minimum(total, self.room) if self.long == "truncate" else total
        for encoding, length in zip(encodings, read.tolist(), strict=True):
            content = np.asarray(encoding.ids, dtype=np.int32)
            starts = _starts(length, self.room)
            for start in starts:
                stop = min(start + self.room, length)
                ids += [self.begin, content[start:stop], self.end]
                slots += [np.arange(first, dtype=np.int32), np.arange(first + start, first + stop, dtype=np.int32)]
                slots += [np.arange(first + length, first + length + last, dtype=np.int32)]
                lengths.append(stop - start + first + last)
            counts.append(len(starts))
        return Windows(
            input_ids=np.concatenate(ids),
            slots=np.concatenate(slots),
            cu_windows=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            cu_documents=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            sizes=read + first + last,
            tokens_total=total,
            tokens_read=read,
            words=[_words(e, n) for e, n in zip(encodings, read.tolist(), strict=True)] if words else None,
            offsets=[
                np.asarray(e.offsets, np.int32).reshape(-1, 2)[:n]
                for e, n in zip(encodings, read.tolist(), strict=True)
            ]
            if words
            else None,
        )


def as_windows(reading: Reading) -> Windows:
    """Return what a run reads of N documents as windows without slots, for vectors that pool no tokens."""
    return Windows(
        input_ids=reading.input_ids,
        slots=np.zeros_like(reading.input_ids),
        cu_windows=reading.indptr,
        cu_documents=np.concatenate([[0], np.cumsum(reading.window_counts)]),
        sizes=reading.lengths,
        tokens_total=reading.tokens_total,
        tokens_read=reading.tokens_read,
    )


def _words(encoding: object, length: int) -> npt.NDArray[np.int32]:
    numbers = encoding.word_ids[:length]  # type: ignore[attr-defined]
    return np.array([-1 if n is None else n for n in numbers], np.int32)


def _starts(length: int, room: int) -> list[int]:
    """Return where each window of `room` begins in `length` content tokens."""
    count = max(1, -(-length // room))
    if count == 1:
        return [0]
    return [round(i * (length - room) / (count - 1)) for i in range(count)]


def _frame(tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the ids of the special tokens before and after a text, by the tokenizer's own template."""
    word = next((w for w in ("a", "the", "1", ".") if tokenizer.encode(w, add_special_tokens=False).ids), "a")
    encoding = tokenizer.encode(word, add_special_tokens=True)
    special = np.array(encoding.special_tokens_mask, bool)
    ids = np.array(encoding.ids, np.int32)
    content = np.flatnonzero(~special)
    if not len(content):
        return ids[:0], ids[:0]
    return ids[: content[0]], ids[content[-1] + 1 :]
