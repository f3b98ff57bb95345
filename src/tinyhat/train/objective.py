"""What a training loop trains: which pack a step's documents make, and what each of them costs.

B documents, N documents of the training split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tinyhat.config import LoopConfig
from tinyhat.data.packing import StepPlan, Steps, build_pack
from tinyhat.data.reading import Reading
from tinyhat.encoder.forward import forward_pack, to_device
from tinyhat.encoder.load import Encoder
from tinyhat.head.imbalance import DocumentLoss
from tinyhat.head.losses import document_losses
from tinyhat.head.output import compute_in_fp32, output_layer
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
    """

    def __init__(
        self,
        encoder: Encoder,
        material: Material,
        loss: DocumentLoss = document_losses,
        draw: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.material, self.loss, self.draw = material, loss, draw
        self.packed, self.first_position = encoder.packed, encoder.first_position
        compute_in_fp32(output_layer(encoder.model, material.targets.width))

    def step_plan(self, config: LoopConfig, world_size: int) -> StepPlan:
        """Return the seeded plan over all documents; padded encoders get batches of similar length."""
        return StepPlan(
            lengths=self.material.reading.lengths,
            labels=self.material.targets.width,
            batch_size=config.batch_size,
            pack_tokens=config.pack_tokens,
            seed=config.seed,
            world_size=world_size,
            window=1 if self.packed else PADDED_WINDOW,
            draw=self.draw,
        )

    def pack(self, rows: IntArray, step: int) -> Pack:
        """Return the pack of `rows` with their targets and weights; the same in every step."""
        weights = self.material.weights
        part = None if weights is None else weights[rows]
        return build_pack(self.material.reading, rows, self.first_position, self.material.targets, part)

    def denominator(self, rows: IntArray, step: int) -> float:
        """Return the number of documents: normalised by the effective batch, never by pack."""
        return float(len(rows))

    def losses(self, encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return the losses of `self.loss`, times the documents' weights."""
        assert pack.targets is not None
        losses = self.loss(forward_pack(encoder, pack, device), pack.targets)
        return losses if pack.weights is None else losses * to_device(pack.weights, losses.device).to(losses.dtype)
