"""Documents of any length cut into sequences of a few sizes, and the plan that reads short ones first, then long ones.

N sequences of all stages together, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinyhat.data.corpus import text_parts, texts_hash
from tinyhat.data.packing import StepPlan
from tinyhat.data.reading import cache_folder
from tinyhat.run import atomic_path
from tinyhat.types import IntArray

PARTS = 64  # parts of texts that are encoded together: 1 MB


@dataclass(frozen=True)
class TokenStream:
    """The tokens of documents, without special tokens.

    Attributes:
        ids: int32 [T].
        indptr: int64 [documents + 1], where each document begins.
    """

    ids: npt.NDArray[np.int32]
    indptr: IntArray


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> TokenStream:
    """Encode documents, in threads and bounded memory; kept in the cache under a hash of texts and tokenizer.

    Args:
        texts: the documents.
        tokenizer: without truncation and padding.
    """
    path = cache_folder() / "tokens" / f"{texts_hash(texts, tokenizer.to_str())}.npz"
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as arrays:
            return TokenStream(arrays["ids"], arrays["indptr"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # absent or damaged: it is computed again
    stream = _encode(texts, tokenizer)
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as target:
            np.savez(target, allow_pickle=False, ids=stream.ids, indptr=stream.indptr)
    except OSError:
        pass  # a full or read-only disk costs the cache, not the run
    return stream


def _encode(texts: Sequence[str], tokenizer: Tokenizer) -> TokenStream:
    parts = ((i, part) for i, text in enumerate(texts) for part in text_parts(text))
    ids: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
    sizes = np.zeros(len(texts), np.int64)
    while group := list(islice(parts, PARTS)):
        encodings = tokenizer.encode_batch_fast([part for _, part in group], add_special_tokens=False)
        for (i, _), encoding in zip(group, encodings, strict=True):
            ids.append(np.array(encoding.ids, np.int32))
            sizes[i] += len(ids[-1])
    return TokenStream(np.concatenate(ids), np.concatenate([[0], np.cumsum(sizes)]))


class Sequences:
    """The N sequences of a stream: each of its documents cut at every length there is, one length after the other.

    Args:
        stream: the documents.
        lengths: tokens of a full sequence, stage by stage, special tokens included; what is left of a document is a
            shorter sequence.
        frame: ids of the special tokens before and behind every sequence.
    """

    def __init__(self, stream: TokenStream, lengths: Sequence[int], frame: tuple[int, int]) -> None:
        self.stream, self.frame = stream, frame
        cut = [_cut(stream.indptr, length - 2) for length in lengths]
        self.counts = [len(begins) for begins, _ in cut]
        self.begins, self.sizes = (np.concatenate(column) for column in zip(*cut, strict=True))

    @property
    def lengths(self) -> IntArray:
        """int64 [N], tokens per sequence with its special tokens."""
        return self.sizes + 2

    def tokens(
        self, rows: IntArray, short_share: float = 0.0, random: np.random.Generator | None = None
    ) -> tuple[IntArray, IntArray]:
        """Return the tokens of `rows` (int64 [B]) end to end, and where each begins (int64 [B + 1]).

        With `random` a share of the sequences ends early, after a number of tokens drawn evenly from 1 to all.
        """
        sizes = self.sizes[rows]
        if random is not None:
            drawn, at = random.random(len(rows)), random.integers(1, np.maximum(sizes, 1) + 1)
            sizes = np.where(drawn < short_share, np.minimum(at, sizes), sizes)
        cu_seqlens = np.concatenate([[0], np.cumsum(sizes + 2)])
        within = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], sizes + 2)
        source = np.repeat(self.begins[rows] - 1, sizes + 2) + within
        ids = self.stream.ids[source.clip(0, len(self.stream.ids) - 1)].astype(np.int64)
        ids[cu_seqlens[:-1]], ids[cu_seqlens[1:] - 1] = self.frame
        return ids, cu_seqlens


def _cut(indptr: IntArray, room: int) -> tuple[IntArray, IntArray]:
    """Return where pieces of at most `room` tokens begin, and their sizes."""
    lengths = np.diff(indptr)
    counts = -(-lengths // room)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = np.repeat(indptr[:-1], counts) + place * room
    return begins, np.minimum(room, np.repeat(indptr[1:], counts) - begins)


class Curriculum:
    """A step plan of stages: short sequences for most of the steps, then long ones, about as many tokens in every step.

    Each stage is a StepPlan over its own sequences; like them it is a pure function of (seed, epoch, step, world size).

    Args:
        lengths: int64 [N] tokens of every sequence, stage after stage.
        counts: sequences of each stage.
        sizes: tokens of a full sequence of each stage.
        switches: share of the steps after which the next stage begins, ascending, one less than stages.
        steps: of the whole training.
        batch_size: sequences per step in the first stage; in others as many as have the same tokens.
        pack_tokens: token budget of one pack.
        seed: of the order.
        world_size: number of ranks.
    """

    def __init__(
        self,
        lengths: IntArray,
        counts: Sequence[int],
        sizes: Sequence[int],
        switches: Sequence[float],
        steps: int,
        batch_size: int,
        pack_tokens: int,
        seed: int,
        world_size: int = 1,
    ) -> None:
        self.lengths, self.total = lengths, steps
        self.first_rows = np.concatenate([[0], np.cumsum(counts)])
        self.begins = [0, *(round(share * steps) for share in switches)]
        self.plans = [
            StepPlan(
                lengths=lengths[low:high],
                labels=1,  # a pack of 8192 tokens asks for some 1,200 of them: its tokens bound its logits
                batch_size=max(1, round(batch_size * sizes[0] / size)),
                pack_tokens=pack_tokens,
                seed=seed + stage,
                world_size=world_size,
            )
            for stage, (low, high, size) in enumerate(
                zip(self.first_rows[:-1], self.first_rows[1:], sizes, strict=True)
            )
        ]

    def stage(self, step: int) -> int:
        """Return which stage `step` (0-based) belongs to."""
        return int(np.searchsorted(self.begins, step, side="right")) - 1

    def batch(self, step: int) -> IntArray:
        """Return the rows of the effective batch of `step`, int64 [batch size of its stage]."""
        stage = self.stage(step)
        return self.plans[stage].batch(step - self.begins[stage]) + self.first_rows[stage]

    def packs(self, step: int, rank: int = 0) -> Iterator[tuple[IntArray, bool]]:
        """Yield (rows, counts) for every pack of `rank` in `step`, as StepPlan does."""
        stage = self.stage(step)
        for rows, counts in self.plans[stage].packs(step - self.begins[stage], rank):
            yield rows + self.first_rows[stage], counts

    def epoch_of(self, step: int) -> float:
        """Return how often the text was read before `step`, all stages together."""
        ends = [*self.begins[1:], self.total]
        spans = (min(step, end) - begin for begin, end in zip(self.begins, ends, strict=True))
        return sum(plan.epoch_of(max(0, span)) for plan, span in zip(self.plans, spans, strict=True))

    def steps(self, epochs: float) -> int:
        """Return the steps that read the text `epochs` times in the first stage (rounded up)."""
        return self.plans[0].steps(epochs)
