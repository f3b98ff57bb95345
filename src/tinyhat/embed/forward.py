"""Forward passes over windows: token states, pooled at once, batches that do not fit in memory halved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, groupby
from operator import itemgetter
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tinyhat.embed.budget import is_out_of_memory
from tinyhat.embed.choice import Layers, Pooling
from tinyhat.embed.fast import fast_layers
from tinyhat.embed.pooling import segment_max, segment_sums, token_weights
from tinyhat.embed.states import PreLogits, combine, layer_states
from tinyhat.embed.tokens import Windows
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.precision import Plan
from tinyhat.errors import UserError
from tinyhat.types import FloatArray, IntArray, Pack

T = TypeVar("T")


class Forward:
    """An encoder that gives vectors or states of windows; may be called by several threads.

    Args:
        encoder: on `device`, in evaluation mode.
        layers: which states.
        pooling: of a document's tokens.
        plan: numeric plan.
        device: where to compute.
        pre_logits: for pooled vectors, else None.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Layers,
        pooling: Pooling,
        plan: Plan,
        device: torch.device,
        pre_logits: PreLogits | None,
    ) -> None:
        self.encoder, self.layers, self.pooling = encoder, layers, pooling
        self.plan, self.device, self.pre_logits = plan, device, pre_logits
        self._fast = None if layers.pooled else fast_layers(encoder, plan, device)

    @property
    def pooled_width(self) -> int:
        """D of the vectors that the last linear layer sees."""
        assert self.pre_logits is not None
        return self.pre_logits.width

    def weights(self, windows: Windows) -> FloatArray | None:
        """Return the pooling's weight of every token of `windows`, float32 [T]; None where it is no weighted sum."""
        return None if self.layers.pooled or self.pooling == "max" else token_weights(windows, self.pooling)

    def vectors(self, windows: Windows, weights: FloatArray | None, documents: IntArray, budget: int) -> FloatArray:
        """Return float32 [B, D] for some documents (int64 [B]), in their order.

        Args:
            windows: tokenised documents.
            weights: of `weights`.
            documents: which of them.
            budget: tokens of one forward pass; a window longer than it is alone.

        Raises:
            UserError: one window alone does not fit in memory.
        """
        counts = np.diff(windows.cu_documents)[documents]
        single = len(documents) == counts.sum()
        if weights is None and not self.layers.pooled and not single:
            return np.stack([states.max(axis=0) for states in self.states(windows, documents, budget)])

        def pooled(pack: Pack) -> FloatArray:
            return _numpy(self._vectors(windows, weights, pack))

        found = np.concatenate(list(self._passes(windows, windows_of(windows, documents), budget, pooled)))
        if single:
            return found
        owner = np.repeat(np.arange(len(documents)), counts)
        out = np.zeros((len(documents), found.shape[1]), np.float32)
        np.add.at(out, owner, found)  # window after window: the same bits whatever else is in the pass
        return (out / counts[:, None]).astype(np.float32) if self.layers.pooled else out

    def states(self, windows: Windows, documents: IntArray, budget: int) -> list[FloatArray]:
        """Return the states of every token of each document, float32 [slots, D], overlapping windows averaged.

        Arguments and errors as for `vectors`.
        """
        rows = windows_of(windows, documents)

        def all_tokens(pack: Pack) -> list[FloatArray]:
            chosen = _numpy(combine(self._layers(pack), self.layers))
            return np.split(chosen, pack.cu_seqlens[1:-1])

        parts = chain.from_iterable(self._passes(windows, rows, budget, all_tokens))
        slots = windows.slots_of(rows)
        owner = np.repeat(documents, np.diff(windows.cu_documents)[documents])
        merged = []
        for document, group in groupby(zip(owner.tolist(), slots, parts, strict=True), key=itemgetter(0)):
            merged.append(_merge([(s, p) for _, s, p in group], int(windows.sizes[document])))
        return merged

    def every_layer(self, windows: Windows, budget: int) -> Iterator[tuple[IntArray, list[list[FloatArray]]]]:
        """Yield windows (int64 [S]) and, per layer, the states float32 [n, D] of each, pass by pass."""

        def all_layers(pack: Pack) -> tuple[IntArray, list[list[FloatArray]]]:
            states = self._states(pack, every=True)
            return pack.rows, [np.split(_numpy(h.float()), pack.cu_seqlens[1:-1]) for h in states]

        yield from self._passes(windows, np.argsort(-windows.lengths, kind="stable"), budget, all_layers)

    def _vectors(self, windows: Windows, weights: FloatArray | None, pack: Pack) -> torch.Tensor:
        if self.pre_logits is not None:
            return self.pre_logits(pack, self.device)
        states = combine(self._layers(pack), self.layers)
        lengths = torch.from_numpy(np.diff(pack.cu_seqlens).astype(np.int64)).to(self.device)
        if weights is None:
            return segment_max(states, lengths)
        own = [weights[windows.cu_windows[w] : windows.cu_windows[w + 1]] for w in pack.rows]
        return segment_sums(states, torch.from_numpy(np.concatenate(own)).to(self.device), lengths)

    def _layers(self, pack: Pack) -> list[torch.Tensor]:
        """Return hidden states such that ``layers.indices`` find theirs; only what they need is kept."""
        last = self.layers.indices == (int(self.encoder.model.config.num_hidden_layers),)
        states = self._states(pack, every=not last)
        return states * (self.layers.indices[0] + 1) if last else states

    def _states(self, pack: Pack, every: bool) -> list[torch.Tensor]:
        if self._fast is not None:
            return self._fast(pack, every)
        return layer_states(self.encoder, pack, self.device, every)

    def _passes(self, windows: Windows, rows: IntArray, budget: int, compute: Callable[[Pack], T]) -> Iterator[T]:
        """Yield what `compute` makes of each pack of `rows` (int64 [S], in order, at most `budget` tokens or one)."""
        lengths = windows.lengths[rows]
        begin, total = 0, 0
        for end, length in enumerate([*lengths.tolist(), budget]):
            if end > begin and (total + length > budget or end == len(rows)):
                yield from self._attempt(windows, rows[begin:end], compute)
                begin, total = end, 0
            total += length

    def _attempt(self, windows: Windows, rows: IntArray, compute: Callable[[Pack], T]) -> list[T]:
        """Compute a pack, or its halves where memory does not suffice."""
        try:
            with torch.inference_mode(), self.plan.context(self.device):
                return [compute(windows.pack(rows, self.encoder.first_position))]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if len(rows) == 1:
            tokens = int(windows.lengths[rows[0]])
            raise UserError(f"one sequence of {tokens} tokens does not fit in memory: set --max-tokens lower")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(rows) // 2
        return [
            *self._attempt(windows, rows[:middle], compute),
            *self._attempt(windows, rows[middle:], compute),
        ]


def windows_of(windows: Windows, documents: IntArray) -> IntArray:
    """Return the windows of `documents` (int64 [B]), document after document, int64 [S]."""
    starts, counts = windows.cu_documents[documents], np.diff(windows.cu_documents)[documents]
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def _merge(parts: list[tuple[npt.NDArray[np.int32], FloatArray]], size: int) -> FloatArray:
    """Put the states of a document's windows into its slots; those read twice are averaged."""
    if len(parts) == 1:
        return parts[0][1]
    total = np.zeros((size, parts[0][1].shape[1]), np.float32)
    readers = np.zeros(size, np.float32)
    for slots, states in parts:  # a window names each slot once
        total[slots] += states
        readers[slots] += 1
    return total / readers[:, None]


def _numpy(tensor: torch.Tensor) -> FloatArray:
    found: FloatArray = tensor.cpu().numpy()
    return found
