"""The torch predictor: documents in, logits out, in input order and flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch

from tinyhat.data.packing import PACK_LOGITS, build_pack, inference_packs
from tinyhat.data.reading import Reader, Reading
from tinyhat.encoder.forward import forward_pack
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.precision import Plan
from tinyhat.head.learned_vote import HEADS, TransformerVote, learned_logits, vote_of, with_vectors
from tinyhat.head.output import compute_in_fp32, output_layer
from tinyhat.head.vote import as_rectangle, vote_logits
from tinyhat.types import Document, FloatArray, IntArray, Prediction, Task

WINDOW = 1024  # documents looked ahead: enough to sort by length, 4 MiB of tokens at 512 each
WINDOW_CHARACTERS = 4 << 20  # and so many characters where documents are read whole, whatever their length
TASKS: dict[str, Task] = {
    "single_label_classification": "single", "multi_label_classification": "multi", "regression": "regression",
}  # fmt: skip


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
        self.task = TASKS.get(str(encoder.model.config.problem_type), "single")
        compute_in_fp32(output_layer(encoder.model, int(encoder.model.config.num_labels)))

    def predict_logits(self, documents: Iterator[Document]) -> Iterator[Prediction]:
        """Yield a Prediction per document, in input order; at most WINDOW documents are held.

        Where documents are read in windows, they are WINDOW_CHARACTERS at most, or one longer document.
        """
        for held in _look_ahead(documents, self.reader.config.strategy == "windows"):
            pairs = None if held[0].pair is None else [d.pair or "" for d in held]
            reading = self.reader.read([d.text for d in held], pairs)
            logits, speaker = self.logits_and_speakers(reading)
            for i, document in enumerate(held):
                yield Prediction(
                    document.id,
                    logits[i],
                    int(reading.tokens_read[i]),
                    int(reading.tokens_total[i]),
                    windows=int(reading.window_counts[i]),
                    speaker=None if speaker is None else speaker[i],
                )

    def logits(self, reading: Reading, progress: Callable[[int], None] | None = None) -> FloatArray:
        """Return float32 [N, L] for a whole reading; `progress` is told the number of documents done."""
        return self.logits_and_speakers(reading, progress)[0]

    def logits_and_speakers(
        self, reading: Reading, progress: Callable[[int], None] | None = None
    ) -> tuple[FloatArray, IntArray | None]:
        """Return float32 [N, L] logits, and int64 [N, L] which window of a document has the highest logit of its own.

        The windows of a document may lie in several packs; only their logits (and vectors, for a learned vote) are
        held, for as many documents at a time as PACK_LOGITS numbers allow. Without windows there are no speakers.
        """
        model = self.encoder.model
        self.numeric_plan.store(model)
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                if reading.windows is None:
                    return self._sequences(reading, progress), None
                return self._documents(reading, progress)
        finally:
            model.train(training)

    def _sequences(self, reading: Reading, progress: Callable[[int], None] | None, extra: int = 0) -> FloatArray:
        """Return float32 [S, L + extra], what the model says of every sequence."""
        labels = int(self.encoder.model.config.num_labels)
        out = np.zeros((len(reading), labels + extra), dtype=np.float32)
        for rows in inference_packs(reading.lengths, self.pack_tokens, labels + extra):
            pack = build_pack(reading, rows, self.encoder.first_position)
            with self.numeric_plan.context(self.device):
                out[rows] = forward_pack(self.encoder, pack, self.device).float().cpu().numpy()
            if progress:
                progress(len(rows))
        return out

    def _documents(
        self, reading: Reading, progress: Callable[[int], None] | None
    ) -> tuple[FloatArray, IntArray | None]:
        labels = int(self.encoder.model.config.num_labels)
        logits = np.zeros((len(reading), labels), np.float32)
        speaker = np.zeros((len(reading), labels), np.int64)
        vote = vote_of(self.encoder.model)
        width = output_layer(self.encoder.model, labels).in_features if vote is not None else 0
        heads = HEADS if isinstance(vote, TransformerVote) else 0
        for begin, end in _groups(reading.window_counts, PACK_LOGITS, labels + width, heads):
            logits[begin:end], speaker[begin:end] = self._vote(_part(reading, begin, end))
            if progress:
                progress(end - begin)
        return logits, speaker

    def _vote(self, reading: Reading) -> tuple[FloatArray, IntArray]:
        model, count = self.encoder.model, len(reading)
        labels = int(model.config.num_labels)
        owner = np.repeat(np.arange(count), reading.window_counts)
        vote, layer = vote_of(model), output_layer(model, labels)
        if vote is None:
            found = self._sequences(reading.flat, None)
        else:
            with with_vectors(layer):
                found = self._sequences(reading.flat, None, layer.in_features)
        windows, document = torch.from_numpy(found), torch.from_numpy(owner)
        own, _ = as_rectangle(windows[:, :labels], document, count, -torch.inf)
        speaker = own.argmax(dim=1).numpy()
        if vote is None:
            logits = vote_logits(windows, document, count, self.task, self.reader.config)
        else:
            logits = learned_logits(vote, layer, windows.to(self.device), document.to(self.device), count)
        return logits.cpu().numpy(), speaker


def _look_ahead(documents: Iterator[Document], windowed: bool) -> Iterator[list[Document]]:
    if not windowed:
        while held := list(islice(documents, WINDOW)):
            yield held
        return
    held, characters = [], 0
    for document in documents:
        if held and (len(held) == WINDOW or characters + len(document.text) > WINDOW_CHARACTERS):
            yield held
            held, characters = [], 0
        held.append(document)
        characters += len(document.text)
    if held:
        yield held


def _groups(counts: IntArray, most: int, width: int, heads: int = 0) -> Iterator[tuple[int, int]]:
    """Cut documents, in order, into groups that make a vote compute at most `most` numbers; one document may need more.

    Args:
        counts: int64 [N], windows of each document.
        most: see above.
        width: numbers of a window: its logits, and its vector for a learned vote.
        heads: of a vote in which windows attend to one another: it has a number for each two of them, too.
    """
    begin = longest = 0
    for end, count in enumerate(counts):
        side = max(longest, int(count))
        if end > begin and (end - begin + 1) * side * (width + heads * side) > most:
            yield begin, end
            begin, side = end, int(count)
        longest = side
    if begin < len(counts):
        yield begin, len(counts)


def _part(reading: Reading, begin: int, end: int) -> Reading:
    """Return the documents from `begin` to `end` of a windowed reading."""
    assert reading.windows is not None
    first, last = reading.windows[begin], reading.windows[end]
    tokens = slice(reading.indptr[first], reading.indptr[last])
    return Reading(
        reading.input_ids[tokens],
        reading.indptr[first : last + 1] - reading.indptr[first],
        reading.tokens_total[begin:end],
        reading.tokens_read[begin:end],
        windows=reading.windows[begin : end + 1] - first,
    )
