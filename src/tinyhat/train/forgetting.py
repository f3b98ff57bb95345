"""What fine-tuning changed in the encoder, measured on a text. T tokens, N pairs of sentences, D width, K layers.

Three views: how alike every layer's states are before and after (cosine, CKA), what a linear probe can still read from
them, and, where the checkpoint has its masked-LM head, how well masked words are guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tinyhat.config import ReadingConfig
from tinyhat.data.packing import build_pack, cut_packs
from tinyhat.data.passages import neighbours, parted, read_passages
from tinyhat.data.reading import Reader, Reading
from tinyhat.encoder.hidden import MaskedHead, hidden_states, load_masked_lm
from tinyhat.encoder.load import Encoder, backend_tokenizer
from tinyhat.errors import UserError
from tinyhat.train.replay import asked, masked, masking_of
from tinyhat.types import IntArray

PAIRS = 500  # for the probe, judged by cross-validation: a tenth of a point is 5 pairs
FEWEST = 40
FOLDS = 5
TOKENS = 4096  # whose states are compared: several times the width, or CKA would be near 1 by itself
PASSAGES = 160  # for the masked-LM loss, of at most 128 tokens
PACK = 4096
PROBE = "do two sentences follow each other in the text, or not"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """What is measured of an encoder at one moment.

    Attributes:
        states: float32 [K + 1, T, D], of the same tokens at every moment, behind embeddings and each layer.
        means: float32 [2 N, D], mean state of a sentence behind the last layer, first sentences of N pairs first.
        masked_loss: nats per masked token, or None without a masked-LM head.
    """

    states: Floats
    means: Floats
    masked_loss: float | None


class Forgetting:
    """Measures one encoder on one text: when made, and again for the report.

    Args:
        encoder: with its pretrained weights; it is trained in place between snapshots.
        path: the text.
        device: where to compute, always in fp32.
        seed: of the sentences, the pairs and the masks.
        before: a snapshot taken earlier of the same encoder, text and seed; None takes it now.

    Raises:
        UserError: the text cannot be read, or has too few sentences that follow each other.
    """

    def __init__(
        self, encoder: Encoder, path: str, device: torch.device, seed: int, before: Snapshot | None = None
    ) -> None:
        self.encoder, self.path, self.device = encoder, path, device
        random = np.random.default_rng(seed)
        passages = read_passages(path)
        found = neighbours(passages)
        if len(found) < FEWEST:
            raise UserError(
                f"train.forgetting = {path!r} has {len(found)} pairs of neighbouring sentences of 5 to 20 words, "
                f"{FEWEST} are needed: name a longer text"
            )
        chosen = [found[i] for i in np.sort(random.permutation(len(found))[:PAIRS])]
        pairs, self.together = parted(chosen, seed)
        most = min(128, encoder.max_positions or 128)
        reader = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=most))
        self.probe = reader.read([first for first, _ in pairs] + [second for _, second in pairs])
        self.first = self.probe.lengths.cumsum() <= TOKENS
        self.passages = reader.read([passages[i] for i in np.sort(random.permutation(len(passages))[:PASSAGES])])
        self.seed = seed
        self.masked: MaskedHead | None = load_masked_lm(encoder)
        self.before = before or self.snapshot()

    def report(self) -> dict[str, Any]:
        """Measure again and return `compare`'s facts."""
        return self.compare(self.before, self.snapshot())

    def snapshot(self) -> Snapshot:
        """Measure the encoder as it is now; its mode and its weights stay."""
        model = self.encoder.model
        modes = [(module, module.training) for module in model.modules()]
        model.to(self.device).eval()
        try:
            with torch.inference_mode():
                rows = np.flatnonzero(self.first)
                pack = build_pack(self.probe, rows, self.encoder.first_position)
                states = torch.stack(hidden_states(self.encoder, pack, self.device)).cpu().numpy()
                return Snapshot(states, self._means(self.probe), self._masked_loss())
        finally:
            for module, mode in modes:
                module.training = mode

    def compare(self, before: Snapshot, after: Snapshot) -> dict[str, Any]:
        """Return the facts for metrics.json.

        ``layers`` has for embeddings (0) and each layer the mean cosine of a token's states before and after, and
        linear CKA. ``probe`` has the accuracy of a linear probe fitted on the states before (``before``), the same
        probe read from the states after (``kept``), and one fitted anew on them (``refitted``).
        """
        layers = [
            {"layer": i, "cosine": mean_cosine(a, b), "cka": linear_cka(a, b)}
            for i, (a, b) in enumerate(zip(before.states, after.states, strict=True))
        ]
        facts: dict[str, Any] = {
            "text": self.path,
            "tokens": int(before.states.shape[1]),
            "layers": layers,
            "probe": {"task": PROBE, "pairs": len(self.together)} | self._probe(before.means, after.means),
        }
        if before.masked_loss is not None and after.masked_loss is not None:
            facts["masked_lm_loss"] = {"before": before.masked_loss, "after": after.masked_loss}
        return facts

    def _probe(self, before: Floats, after: Floats) -> dict[str, float]:
        """Return the cross-validated accuracies of `compare`."""
        old, new = _pair_features(before), _pair_features(after)
        fold = np.random.default_rng(self.seed).permutation(len(self.together)) % FOLDS
        right = np.zeros(3)
        for k in range(FOLDS):
            fitted, judged = fold != k, fold == k
            true = self.together[judged]
            probe = _fit_probe(old[fitted], self.together[fitted])
            anew = _fit_probe(new[fitted], self.together[fitted])
            right += [np.sum(p.predict(x[judged]) == true) for p, x in ((probe, old), (probe, new), (anew, new))]
        shares = right / len(self.together)
        return {"before": float(shares[0]), "kept": float(shares[1]), "refitted": float(shares[2])}

    def _means(self, reading: Reading) -> Floats:
        out: list[tuple[IntArray, Floats]] = []
        for rows in cut_packs(np.arange(len(reading)), reading.lengths, PACK, len(reading)):
            pack = build_pack(reading, rows, self.encoder.first_position)
            last = hidden_states(self.encoder, pack, self.device)[-1].cpu().numpy()
            sums = np.add.reduceat(last, pack.cu_seqlens[:-1], axis=0)
            out.append((rows, (sums / reading.lengths[rows][:, None]).astype(np.float32)))
        order = np.argsort(np.concatenate([rows for rows, _ in out]))
        return np.concatenate([means for _, means in out])[order]

    def _masked_loss(self) -> float | None:
        if self.masked is None:
            return None
        self.masked.model.eval()
        random = np.random.default_rng([self.seed, 2])
        masking = masking_of(self.encoder, self.masked.mask_id)
        total, count = 0.0, 0
        for rows in cut_packs(np.arange(len(self.passages)), self.passages.lengths, PACK // 2, len(self.passages)):
            pack = build_pack(self.passages, rows, self.encoder.first_position)
            pack = masked(pack, masking, random)
            total += float(self.masked.loss(self.encoder, pack, self.device))
            count += asked(pack)
        return total / max(1, count)


def mean_cosine(a_TD: Floats, b_TD: Floats) -> float:
    """Return the mean over tokens of the cosine between a token's two states."""
    a, b = a_TD.astype(np.float64), b_TD.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(norms, 1e-12)))


def linear_cka(a_TD: Floats, b_TD: Floats) -> float:
    """Return linear CKA of two sets of states of the same tokens: |B'A|^2 / (|A'A| |B'B|), columns centred.

    1 when one is a rotation and scaling of the other (Kornblith et al. 2019, equation 5 and section 3).
    """
    a, b = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (a_TD, b_TD))
    cross, own_a, own_b = (float(np.square(x).sum()) for x in (b.T @ a, a.T @ a, b.T @ b))
    return float(cross / max(np.sqrt(own_a * own_b), 1e-30))


def _pair_features(means: Floats) -> Floats:
    """Return what tells two sentences apart, float32 [N, 2 D]: |u - v| and u v (Conneau et al. 2017, section 3.1)."""
    first, second = np.split(means, 2)
    return np.concatenate([np.abs(first - second), first * second], axis=1)


def _fit_probe(states: Floats, true: IntArray) -> Any:
    # fixed strength: what is compared is the encoder, not how well the probe was tuned
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(states, true)
