"""The objective of pretraining: predict masked tokens; and its measure on held-out text. B sequences, T tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tinyhat.config import LoopConfig, PretrainConfig
from tinyhat.data.masking import Masking, mask_tokens
from tinyhat.data.packing import Steps, inference_packs
from tinyhat.data.sequences import Curriculum, Sequences
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.masked_lm import masked_lm_losses
from tinyhat.encoder.precision import Plan
from tinyhat.types import NOT_ASKED, IntArray, Pack


class MaskedBatch:
    """Sequences with their masks, from which packs are taken.

    Args:
        input_ids: int64 [T], masked.
        targets: int64 [T], NOT_ASKED where nothing is to be predicted.
        cu_seqlens: int64 [B + 1].
        rows: int64 [B], what the sequences are called.
    """

    def __init__(self, input_ids: IntArray, targets: IntArray, cu_seqlens: IntArray, rows: IntArray) -> None:
        self.input_ids, self.targets, self.cu_seqlens = input_ids, targets, cu_seqlens
        self._place = {int(row): i for i, row in reversed(list(enumerate(rows)))}  # a row twice: the first place
        self._rows = rows

    @property
    def asked(self) -> int:
        """How many tokens are to be predicted in the packs of all rows; a row twice has the first one's masks twice."""
        before = np.concatenate([[0], np.cumsum(self.targets != NOT_ASKED)])
        counts = before[self.cu_seqlens[1:]] - before[self.cu_seqlens[:-1]]
        return int(sum(counts[self._place[int(row)]] for row in self._rows))

    def pack(self, rows: IntArray) -> Pack:
        """Return the pack of `rows` (int64 [B]), longest first: attention on CPU goes by runs of equal length."""
        at = np.array([self._place[int(row)] for row in rows])
        order = np.argsort(self.cu_seqlens[at] - self.cu_seqlens[at + 1], kind="stable")
        at, rows = at[order], rows[order]
        begins, lengths = self.cu_seqlens[at], self.cu_seqlens[at + 1] - self.cu_seqlens[at]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
        source = np.repeat(begins, lengths) + within
        return Pack(
            input_ids=self.input_ids[source],
            position_ids=within,
            cu_seqlens=cu_seqlens.astype(np.int32),
            max_seqlen=int(lengths.max(initial=0)),
            sequence_doc=np.arange(len(rows)),
            rows=rows,
            token_targets=self.targets[source],
        )


class MaskedLM:
    """What the loop asks of pretraining. The masks of a step are those of its whole batch, drawn from (seed, step).

    Args:
        sequences: of all stages.
        masking: how.
        config: the pretrain section.
    """

    def __init__(self, sequences: Sequences, masking: Masking, config: PretrainConfig) -> None:
        self.sequences, self.masking, self.config = sequences, masking, config
        self._step = -1
        self._batch: MaskedBatch | None = None

    def step_plan(self, config: LoopConfig, world_size: int) -> Steps:
        """Return the length curriculum over all sequences."""
        own = self.config
        assert own.max_steps is not None
        return Curriculum(
            self.sequences.lengths, self.sequences.counts, own.lengths, own.switches, own.max_steps,
            config.batch_size, config.pack_tokens, config.seed, world_size,
        )  # fmt: skip

    def denominator(self, rows: IntArray, step: int) -> float:
        """Return the tokens to be predicted in the effective batch `rows`; its masks are drawn here."""
        random = np.random.default_rng([self.config.seed, step])
        ids, cu_seqlens = self.sequences.tokens(rows, self.config.short_share, random)
        self._batch = MaskedBatch(*mask_tokens(ids, cu_seqlens, self.masking, random), cu_seqlens, rows)
        self._step = step
        return float(max(1, self._batch.asked))

    def pack(self, rows: IntArray, step: int) -> Pack:
        """Return the masked pack of `rows`, which are of the batch that `denominator` was asked about for `step`."""
        assert self._step == step, "the loop asks for a step's denominator first"
        assert self._batch is not None
        return self._batch.pack(rows)

    def losses(self, encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return the summed cross-entropy of every sequence, fp32 [B]."""
        return masked_lm_losses(encoder, pack, device)


class Validation:
    """Masked-LM loss on held-out sequences, the same ones with the same masks every time.

    Args:
        sequences: held out; those of the first stage are measured, short ones too.
        masking: how.
        tokens: at most so many, from sequences in a seeded order.
        pack_tokens: token budget of one pack.
        seed: of order and masks.
    """

    def __init__(self, sequences: Sequences, masking: Masking, tokens: int, pack_tokens: int, seed: int) -> None:
        random = np.random.default_rng([seed, 1, 1])
        order = random.permutation(sequences.counts[0])
        keep = np.cumsum(sequences.lengths[order]) <= tokens
        keep[:1] = True
        rows = order[keep]
        ids, cu_seqlens = sequences.tokens(rows)
        self._batch = MaskedBatch(*mask_tokens(ids, cu_seqlens, masking, random), cu_seqlens, rows)
        self._rows = [rows[part] for part in inference_packs(sequences.lengths[rows], pack_tokens, 1)]
        self.sequences, self.tokens, self.asked = len(rows), len(ids), self._batch.asked
        self.unigram_entropy = unigram_entropy(ids[masking.eligible[ids]])

    def packs(self) -> Iterator[Pack]:
        """Yield every measured sequence once."""
        for rows in self._rows:
            yield self._batch.pack(rows)

    def loss(self, encoder: Encoder, plan: Plan, device: torch.device) -> float:
        """Return the mean cross-entropy of the tokens asked for, in nats."""
        model = encoder.model
        training = model.training
        model.eval()
        total = 0.0
        try:
            with torch.inference_mode():
                for pack in self.packs():
                    with plan.context(device):
                        total += float(masked_lm_losses(encoder, pack, device).sum())
        finally:
            model.train(training)
        return total / max(1, self.asked)


def unigram_entropy(ids: IntArray) -> float:
    """Return the entropy of the tokens' own frequencies in nats: no guess without context has a smaller mean loss."""
    counts = np.unique(ids, return_counts=True)[1]
    shares = counts / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())
