"""Losses and sampling for labels that are rare. B documents, L labels, N training documents.

Every loss is per document and in fp32, as `losses.document_losses`, which it equals where nothing is asked for. The
dense [B, L] matrix of targets is never built: true labels are a correction at B x (labels of a document) places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tinyhat.config import TrainConfig
from tinyhat.head.losses import document_losses
from tinyhat.types import FloatArray, IntArray, Targets

DocumentLoss = Callable[[torch.Tensor, Targets], torch.Tensor]
TINY = 1e-12  # the slope of p^gamma is infinite at 0 where gamma is below 1


def build_loss(config: TrainConfig, targets: Targets) -> DocumentLoss:
    """Return the loss the train section asks for, logits [B, L] and targets to float32 [B].

    Args:
        config: loss, its parameters, class_weights, pos_weight, label_smoothing.
        targets: of all N training documents; weights are computed from their counts.
    """
    if targets.task == "single":
        weights = class_weights(targets) if config.class_weights else None
        gamma = config.focal_gamma if config.loss == "focal" else 0.0
        if weights is not None or gamma or config.label_smoothing:
            return SingleLoss(weights, gamma, config.label_smoothing)
    if targets.task == "multi":
        cap = config.pos_weight
        weights = pos_weights(targets, cap) if cap is not None else None
        if config.loss == "asymmetric":
            return AsymmetricLoss(config.asymmetric_gamma, config.asymmetric_margin)
        gamma = config.focal_gamma if config.loss == "focal" else 0.0
        if weights is not None or gamma or config.label_smoothing:
            return MultiLoss(weights, gamma, config.label_smoothing)
    return document_losses


@dataclass(frozen=True)
class SingleLoss:
    """Cross-entropy with class weights, focusing and smoothing: w_y (1 - p_y)^gamma CE (Lin et al. 2017, equation 5).

    Attributes:
        weights: float32 [L] or None for ones.
        gamma: 0 is plain cross-entropy.
        smoothing: share of the target that is spread over all labels (Szegedy et al. 2016, section 7).
    """

    weights: FloatArray | None
    gamma: float
    smoothing: float

    def __call__(self, logits_BL: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Return the losses [B]; a document whose label is outside the label space costs nothing."""
        logits = logits_BL.float()
        true = torch.from_numpy(targets.values.astype(np.int64)).to(logits.device)
        losses = functional.cross_entropy(
            logits, true, ignore_index=-1, reduction="none", label_smoothing=self.smoothing
        )
        known = true.clamp(min=0)
        if self.gamma:
            chance = logits.log_softmax(dim=1).gather(1, known[:, None])[:, 0].exp()
            losses = losses * (1 - chance).clamp(min=TINY) ** self.gamma
        if self.weights is not None:
            losses = losses * torch.from_numpy(self.weights).to(logits.device)[known]
        return losses


@dataclass(frozen=True)
class MultiLoss:
    """Binary cross-entropy summed over labels, with weights for positives, focusing and smoothing.

    With p = sigmoid(x): positives cost w (1 - p)^gamma softplus(-x), negatives p^gamma softplus(x) (Lin et al. 2017).
    Smoothing moves both targets eps / 2 towards each other.

    Attributes:
        weights: float32 [L], of positives, or None for ones.
        gamma: 0 is plain cross-entropy.
        smoothing: eps.
    """

    weights: FloatArray | None
    gamma: float
    smoothing: float

    def __call__(self, logits_BL: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Return the losses [B]."""
        logits = logits_BL.float()
        document, label = true_places(targets, logits.device)
        at = logits[document, label]
        weight = 1.0 if self.weights is None else torch.from_numpy(self.weights).to(logits.device)[label]
        half = self.smoothing / 2
        negative = (1 - half) * self._cost(logits) + half * self._cost(-logits)
        wrong = (1 - half) * self._cost(at) + half * self._cost(-at)
        right = weight * ((1 - half) * self._cost(-at) + half * self._cost(at))
        return negative.sum(dim=1).index_add(0, document, right - wrong)

    def _cost(self, x: torch.Tensor) -> torch.Tensor:
        """Return what a negative with logit x costs."""
        cost = functional.softplus(x)
        return cost * torch.sigmoid(x).clamp(min=TINY) ** self.gamma if self.gamma else cost


@dataclass(frozen=True)
class AsymmetricLoss:
    """Positives cost plain cross-entropy; negatives are focused, and cost nothing below a probability.

    With p_m = max(p - margin, 0) a negative costs p_m^gamma x -log(1 - p_m) (Ridnik et al. 2021, equations 5 to 7, with
    gamma+ = 0 as recommended there).

    Attributes:
        gamma: gamma- there.
        margin: m there.
    """

    gamma: float
    margin: float

    def __call__(self, logits_BL: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Return the losses [B]."""
        logits = logits_BL.float()
        document, label = true_places(targets, logits.device)
        at = logits[document, label]
        change = functional.softplus(-at) - self._negative(at)
        return self._negative(logits).sum(dim=1).index_add(0, document, change)

    def _negative(self, x: torch.Tensor) -> torch.Tensor:
        shifted = (torch.sigmoid(x) - self.margin).clamp(min=0)
        # 1 - p_m is min(1 - p + margin, 1): never 0 with a margin; without one, softplus keeps what rounding loses
        cost = functional.softplus(x) if self.margin == 0 else -torch.log1p(-shifted)
        return shifted.clamp(min=TINY) ** self.gamma * cost if self.gamma else cost


def true_places(targets: Targets, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return document and label of every true label of multi-label `targets`, int64 [nnz] both."""
    assert targets.indptr is not None
    document = np.repeat(np.arange(len(targets)), np.diff(targets.indptr))
    return torch.from_numpy(document).to(device), torch.from_numpy(targets.values.astype(np.int64)).to(device)


def label_counts(targets: Targets) -> IntArray:
    """Return how many documents have each label, int64 [L]."""
    values = targets.values[targets.values >= 0].astype(np.int64)
    return np.bincount(values, minlength=targets.width).astype(np.int64)


def class_weights(targets: Targets) -> FloatArray:
    """Return N / (seen labels x documents of the label), float32 [L]: every label counts alike, documents 1 on average.

    Labels without documents get 0 (King & Zeng 2001; scikit-learn's ``class_weight="balanced"``).
    """
    counts = label_counts(targets)
    seen = counts > 0
    weights = np.zeros(targets.width, np.float32)
    weights[seen] = counts.sum() / (seen.sum() * counts[seen])
    return weights


def pos_weights(targets: Targets, cap: float) -> FloatArray:
    """Return negatives over positives of every label, between 1 and `cap`, float32 [L].

    Without a cap a label with one document of 45,000 would weigh 45,000, and its gradient would drown all others.
    """
    counts = label_counts(targets)
    odds = (len(targets) - counts) / np.maximum(counts, 1)
    return np.clip(odds, 1.0, cap).astype(np.float32)


def sampling(targets: Targets, exponent: float) -> npt.NDArray[np.float64] | None:
    """Return the probability of drawing each of N documents, or None when all are read alike.

    A document is drawn as (documents of its rarest label)^-exponent; one without labels as the most frequent label.
    Exponent 1 makes labels equally frequent, 1/2 is square-root sampling (Kang et al. 2020, section 4.1; Mahajan et al.
    2018).

    Args:
        targets: of the N training documents, single or multi.
        exponent: 0 to 1.
    """
    if not exponent or targets.task == "regression":
        return None
    counts = label_counts(targets).astype(np.float64)
    rarest = np.full(len(targets), counts.max(initial=1.0))
    if targets.indptr is None:
        known = targets.values >= 0
        rarest[known] = counts[targets.values[known].astype(np.int64)]
    else:
        filled = np.flatnonzero(np.diff(targets.indptr))
        if len(filled):
            rarest[filled] = np.minimum.reduceat(counts[targets.values.astype(np.int64)], targets.indptr[:-1][filled])
    drawn = rarest**-exponent
    return np.asarray(drawn / drawn.sum())
