"""What a training loop trains: which pack a step's documents make, and what each of them costs.

B documents, N documents of the training split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tinyhat.config import LoopConfig, ReadingConfig
from tinyhat.data.packing import StepPlan, Steps, build_pack, capped_lengths, drawn_windows
from tinyhat.data.reading import Reading
from tinyhat.encoder.forward import forward_pack, to_device
from tinyhat.encoder.load import Encoder
from tinyhat.head.imbalance import DocumentLoss
from tinyhat.head.learned_vote import learned_logits, vote_of, with_vectors
from tinyhat.head.losses import document_losses
from tinyhat.head.output import compute_in_fp32, output_layer
from tinyhat.head.vote import segment_mean, vote_logits
from tinyhat.types import FloatArray, IntArray, Pack, Targets

PADDED_WINDOW = 16  # batches grouped by length together where sequences are padded


class Objective(Protocol):
    """What the loop asks of a task. What is random in it depends on (seed, step, row) alone, or resume is not exact."""

    def step_plan(self, config: LoopConfig, world_size: int) -> Steps:
        """Return which documents each step reads, and in which packs."""
        ...

    def pack(self, rows: IntArray, step: int) -> Pack:
        """Return the pack of `rows` (int64 [B]) in `step` (0-based)."""
        ...

    def denominator(self, rows: IntArray, step: int) -> float:
        """Return what the summed losses of the whole effective batch `rows` are divided by: normally its documents."""
        ...

    def losses(self, encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return the (weighted) loss of every document of `pack`, fp32 [B]; `encoder.model` may be a DDP wrapper."""
        ...


@dataclass(frozen=True)
class Material:
    """What a classifier is trained on.

    Attributes:
        reading: token ids of the training documents.
        targets: their targets (regression: standardised).
        weights: float32 [N], mean 1, or None.
    """

    reading: Reading
    targets: Targets
    weights: FloatArray | None = None


class Classify:
    """The objective of a classifier: the loss of its task, document by document.

    Args:
        encoder: the classifier; its output layer is set to compute in fp32.
        material: training documents.
        loss: logits [B, L] and targets to losses [B] (`head.imbalance`).
        draw: float64 [N], how often documents are read; None: all alike.
        config: how windows learn and vote, where documents have several.
    """

    seed = 0

    def __init__(
        self,
        encoder: Encoder,
        material: Material,
        loss: DocumentLoss = document_losses,
        draw: npt.NDArray[np.float64] | None = None,
        config: ReadingConfig | None = None,
    ) -> None:
        self.material, self.loss, self.draw, self.config = material, loss, draw, config or ReadingConfig()
        self.packed, self.first_position = encoder.packed, encoder.first_position
        self.layer = output_layer(encoder.model, material.targets.width)
        compute_in_fp32(self.layer)

    def step_plan(self, config: LoopConfig, world_size: int) -> StepPlan:
        """Return the seeded plan over all documents; padded encoders get batches of similar length."""
        self.seed = config.seed
        return StepPlan(
            lengths=capped_lengths(self.material.reading, self.config.max_windows),
            labels=self.material.targets.width,
            batch_size=config.batch_size,
            pack_tokens=config.pack_tokens,
            seed=config.seed,
            world_size=world_size,
            window=1 if self.packed else PADDED_WINDOW,
            draw=self.draw,
        )

    def pack(self, rows: IntArray, step: int) -> Pack:
        """Return the pack of `rows` with their targets and weights.

        It is the same in every step, but for the windows of documents that have more than ``max_windows``.
        """
        reading, weights = self.material.reading, self.material.weights
        part = None if weights is None else weights[rows]
        most = self.config.max_windows
        drawn = None if reading.windows is None else drawn_windows(reading, rows, most, self.seed, step)
        return build_pack(reading, rows, self.first_position, self.material.targets, part, drawn)

    def denominator(self, rows: IntArray, step: int) -> float:
        """Return the number of documents: normalised by the effective batch, never by pack."""
        return float(len(rows))

    def losses(self, encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return the losses of `self.loss`, times the documents' weights.

        With windows: the mean loss of a document's windows, each against the document's targets, or the loss of the
        document's voted logits.
        """
        assert pack.targets is not None
        # one window each: the plain path, bit by bit (a gradient through the mean of one rounds differently)
        if len(pack.sequence_doc) == pack.documents and vote_of(encoder.model) is None:
            losses = self.loss(forward_pack(encoder, pack, device), pack.targets)
        else:
            losses = self._window_losses(encoder, pack, pack.targets, device)
        return losses if pack.weights is None else losses * to_device(pack.weights, losses.device).to(losses.dtype)

    def _window_losses(self, encoder: Encoder, pack: Pack, targets: Targets, device: torch.device) -> torch.Tensor:
        document = to_device(pack.sequence_doc, device)
        vote = vote_of(encoder.model)
        if vote is not None:
            with with_vectors(self.layer):
                both = forward_pack(encoder, pack, device)
            return self.loss(learned_logits(vote, self.layer, both, document, pack.documents), targets)
        logits = forward_pack(encoder, pack, device)
        if self.config.learn == "document":
            return self.loss(vote_logits(logits, document, pack.documents, targets.task, self.config), targets)
        losses = self.loss(logits, targets.take(pack.sequence_doc))
        return segment_mean(losses, document, pack.documents)
