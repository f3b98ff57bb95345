"""The torch predictor: documents in, logits out, in input order and flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch

from tinyhat.data.packing import build_pack, inference_packs
from tinyhat.data.reading import Reader, Reading
from tinyhat.encoder.forward import forward_pack
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.precision import Plan
from tinyhat.head.output import compute_in_fp32, output_layer
from tinyhat.types import Document, FloatArray, Prediction

WINDOW = 1024  # documents looked ahead: enough to sort by length, 4 MiB of tokens at 512 each


class TorchPredictor:
    """An encoder with its head, as a Predictor.

    Args:
        encoder: the loaded classifier.
        reader: tokeniser and reading configuration.
        plan: the numeric plan to compute in.
        device: where to compute.
        pack_tokens: token budget of one pack.
    """

    def __init__(self, encoder: Encoder, reader: Reader, plan: Plan, device: torch.device, pack_tokens: int) -> None:
        self.encoder, self.reader, self.device = encoder, reader, device
        self.numeric_plan, self.plan = plan, plan.name
        self.pack_tokens = pack_tokens
        compute_in_fp32(output_layer(encoder.model, int(encoder.model.config.num_labels)))

    def predict_logits(self, documents: Iterator[Document]) -> Iterator[Prediction]:
        """Yield a Prediction per document, in input order; at most WINDOW documents are held."""
        while window := list(islice(documents, WINDOW)):
            pairs = None if window[0].pair is None else [d.pair or "" for d in window]
            reading = self.reader.read([d.text for d in window], pairs)
            logits = self.logits(reading)
            for i, document in enumerate(window):
                yield Prediction(document.id, logits[i], int(reading.tokens_read[i]), int(reading.tokens_total[i]))

    def logits(self, reading: Reading, progress: Callable[[int], None] | None = None) -> FloatArray:
        """Return float32 [N, L] for a whole reading; `progress` is told the number of documents done."""
        model = self.encoder.model
        self.numeric_plan.store(model)
        labels = int(model.config.num_labels)
        out = np.zeros((len(reading), labels), dtype=np.float32)
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                for rows in inference_packs(reading.lengths, self.pack_tokens, labels):
                    pack = build_pack(reading, rows, self.encoder.first_position)
                    with self.numeric_plan.context(self.device):
                        out[rows] = forward_pack(self.encoder, pack, self.device).float().cpu().numpy()
                    if progress:
                        progress(len(rows))
        finally:
            model.train(training)
        return out
