"""Packs, and the plan that says which documents make which step.

The plan is a pure function of (seed, epoch, step, world size): a resumed run needs the step number and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tinyhat.data.reading import Reading
from tinyhat.types import FloatArray, IntArray, Pack, Targets

PACK_LOGITS = 1 << 24  # B x L of one pack: 64 MiB of fp32 logits, 3,900 documents at 4,271 labels


def build_pack(
    reading: Reading,
    rows: IntArray,
    first_position: int = 0,
    targets: Targets | None = None,
    weights: FloatArray | None = None,
    sequences: Sequence[IntArray] | None = None,
) -> Pack:
    """Lay the sequences of `rows` (int64 [B]) end to end; the windows of a document side by side.

    Args:
        reading: token ids of the whole split.
        rows: which documents, in pack order.
        first_position: position id of a sequence's first token (padding_idx + 1 in the RoBERTa family).
        targets: targets of the whole split, or None.
        weights: float32 [B] weights of these rows, or None.
        sequences: which sequences of each row, int64 each; None: all.
    """
    if reading.windows is None:
        chosen, owner = rows, np.arange(len(rows))
    else:
        parts = [np.arange(*reading.windows[r : r + 2]) for r in rows] if sequences is None else sequences
        chosen = np.concatenate([*parts, np.zeros(0, np.int64)])
        owner = np.repeat(np.arange(len(rows)), [len(part) for part in parts])
    starts, lengths = reading.indptr[chosen], reading.sequence_lengths[chosen]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    source = np.repeat(starts, lengths) + within
    kinds = reading.token_type_ids
    return Pack(
        input_ids=reading.input_ids[source].astype(np.int64),
        position_ids=within + first_position,
        cu_seqlens=cu_seqlens.astype(np.int32),
        max_seqlen=int(lengths.max(initial=0)),
        sequence_doc=owner,
        rows=rows,
        targets=None if targets is None else targets.take(rows),
        token_type_ids=None if kinds is None else kinds[source].astype(np.int64),
        weights=weights,
    )


def capped_lengths(reading: Reading, most: int) -> IntArray:
    """Return int64 [N], an upper bound of a document's tokens where at most `most` of its windows are read."""
    if reading.windows is None:
        return reading.lengths
    longest = np.maximum.reduceat(reading.sequence_lengths, reading.windows[:-1]) if len(reading) else reading.lengths
    return np.minimum(reading.lengths, most * longest)


def drawn_windows(reading: Reading, rows: IntArray, most: int, seed: int, step: int) -> list[IntArray]:
    """Return at most `most` windows of every row, in order, drawn anew in every step by (seed, step, row).

    Args:
        reading: with windows.
        rows: int64 [B].
        most: windows of a document.
        seed: of the run.
        step: 0-based.
    """
    assert reading.windows is not None
    chosen = []
    for row in rows:
        picked = np.arange(*reading.windows[row : row + 2])
        if len(picked) > most:
            random = np.random.default_rng([seed, step, int(row)])
            picked = np.sort(random.choice(picked, most, replace=False))
        chosen.append(picked)
    return chosen


def cut_packs(rows: IntArray, lengths: IntArray, pack_tokens: int, max_documents: int) -> list[IntArray]:
    """Cut `rows` into packs of similar length, each full: longest first, filled up to the budget.

    Args:
        rows: int64 [B] rows to cut.
        lengths: int64 [N] tokens of every row of the split.
        pack_tokens: most tokens in a pack; a single longer document is a pack of its own.
        max_documents: most documents in a pack.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    packs: list[IntArray] = []
    begin, tokens = 0, 0
    for end, row in enumerate(ordered):
        length = int(lengths[row])
        if end > begin and (tokens + length > pack_tokens or end - begin >= max_documents):
            packs.append(ordered[begin:end])
            begin, tokens = end, 0
        tokens += length
    if begin < len(ordered):
        packs.append(ordered[begin:])
    return packs


def documents_per_pack(labels: int) -> int:
    """Return how many documents may share a pack before their logits pass PACK_LOGITS."""
    return max(1, PACK_LOGITS // max(labels, 1))


def inference_packs(lengths: IntArray, pack_tokens: int, labels: int) -> list[IntArray]:
    """Return every row of a split exactly once, in packs of similar length."""
    return cut_packs(np.arange(len(lengths)), lengths, pack_tokens, documents_per_pack(labels))


class Steps(Protocol):
    """What the loop asks of a step plan: which documents each step (0-based) reads, and in which packs."""

    @property
    def lengths(self) -> IntArray:
        """int64 [N], tokens of every document."""
        ...

    def steps(self, epochs: float) -> int:
        """Return the number of steps that read every document `epochs` times (rounded up)."""
        ...

    def epoch_of(self, step: int) -> float:
        """Return how many epochs are done before `step`."""
        ...

    def batch(self, step: int) -> IntArray:
        """Return the rows of the effective batch of `step`, int64 [B]."""
        ...

    def packs(self, step: int, rank: int = 0) -> Iterator[tuple[IntArray, bool]]:
        """Yield (rows, counts) for every pack of `rank` in `step`, as many for every rank."""
        ...


@dataclass(frozen=True)
class StepPlan:
    """Which documents each optimiser step reads, and in which packs.

    Epochs are seeded permutations laid end to end; step s takes the documents [s x batch_size, (s + 1) x batch_size),
    so that every effective batch is full. With `window` > 1 a window of that many batches is sorted by length first
    and its batches shuffled: padded encoders waste less, packed ones do not need it.

    Attributes:
        lengths: int64 [N] tokens per document.
        labels: L, bounds the documents of a pack.
        batch_size: documents per step over all ranks.
        pack_tokens: token budget of one pack.
        seed: of the order.
        world_size: number of ranks.
        window: batches that are grouped by length together.
        draw: float64 [N], an epoch draws N documents with these probabilities and replacement; None: each one once.
    """

    lengths: IntArray
    labels: int
    batch_size: int
    pack_tokens: int
    seed: int
    world_size: int = 1
    window: int = 1
    draw: npt.NDArray[np.float64] | None = None

    def epoch_of(self, step: int) -> float:
        """Return how many epochs are done before `step` (0-based)."""
        return step * self.batch_size / len(self.lengths)

    def steps(self, epochs: float) -> int:
        """Return the number of steps that read every document `epochs` times (rounded up)."""
        return max(1, int(np.ceil(epochs * len(self.lengths) / self.batch_size - 1e-9)))

    def batch(self, step: int) -> IntArray:
        """Return the rows of the effective batch of `step` (0-based), int64 [batch_size]."""
        count = len(self.lengths)
        begin, rows = step * self.batch_size, []
        needed = self.batch_size
        while needed:
            epoch, offset = divmod(begin, count)
            part = _epoch_order(self, epoch)[offset : offset + needed]
            rows.append(part)
            begin, needed = begin + len(part), needed - len(part)
        return np.concatenate(rows)

    def packs(self, step: int, rank: int = 0) -> Iterator[tuple[IntArray, bool]]:
        """Yield (rows, counts) for every pack of `rank` in `step`.

        All ranks get the same number of packs; where one is short it repeats a document with ``counts`` False, which
        must weigh nothing (otherwise DDP and FSDP wait for ever).
        """
        batch = self.batch(step)
        ordered = batch[np.argsort(-self.lengths[batch], kind="stable")]
        limit = documents_per_pack(self.labels)
        shares = [_share(ordered, r, self.world_size) for r in range(self.world_size)]
        packs = [cut_packs(share, self.lengths, self.pack_tokens, limit) for share in shares]
        for rows in packs[rank]:
            yield rows, True
        for _ in range(max(map(len, packs)) - len(packs[rank])):
            yield ordered[-1:], False

    def __hash__(self) -> int:
        return hash((id(self.lengths), self.batch_size, self.seed, self.window))

    def __eq__(self, other: object) -> bool:
        return self is other


def _share(ordered: IntArray, rank: int, world_size: int) -> IntArray:
    """Deal a batch sorted by length to the ranks back and forth, so that each gets about as many tokens."""
    place = np.arange(len(ordered)) % (2 * world_size)
    owner = np.where(place < world_size, place, 2 * world_size - 1 - place)
    return ordered[owner == rank]


@lru_cache(maxsize=4)
def _epoch_order(plan: StepPlan, epoch: int) -> npt.NDArray[np.int64]:
    random = np.random.Generator(np.random.Philox(key=[plan.seed, epoch]))
    count = len(plan.lengths)
    order = random.permutation(count) if plan.draw is None else random.choice(count, count, p=plan.draw)
    order = order.astype(np.int64)
    if plan.window <= 1:
        return order
    blocks: list[IntArray] = []
    size = plan.window * plan.batch_size
    for begin in range(0, len(order), size):
        part = order[begin : begin + size]
        part = part[np.argsort(plan.lengths[part], kind="stable")]
        cuts = np.arange(plan.batch_size, len(part), plan.batch_size)
        pieces = np.split(part, cuts)
        blocks.extend(pieces[i] for i in random.permutation(len(pieces)))
    return np.concatenate(blocks)
