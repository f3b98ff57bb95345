"""One loss per task, per document, in fp32. B documents, L labels, K regression targets."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from tinyhat.encoder.forward import to_device
from tinyhat.types import Targets


def document_losses(logits_BL: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return the loss of every document, float32 [B].

    single: cross-entropy; a document whose label is outside the label space costs nothing.
    multi: binary cross-entropy with logits, *summed* over labels: the mean over thousands of labels makes gradients so
    small that Adam's eps and the gradient clip decide instead of the data.
    regression: squared error, mean over the K targets, on the scale of the logits.

    Args:
        logits_BL: [B, L] in any float type.
        targets: of the same B documents.
    """
    logits = logits_BL.float()
    device = logits.device
    if targets.task == "multi":
        assert targets.indptr is not None
        label = to_device(targets.values.astype(np.int64), device)
        document = to_device(np.repeat(np.arange(len(targets)), np.diff(targets.indptr)), device)
        # -[y log s(x) + (1 - y) log(1 - s(x))] = softplus(x) - x y: the dense 0/1 matrix is never built
        positive = torch.zeros_like(logits[:, 0]).index_add(0, document, logits[document, label])
        return F.softplus(logits).sum(dim=1) - positive
    if targets.task == "single":
        return F.cross_entropy(logits, to_device(targets.values, device), ignore_index=-1, reduction="none")
    return (logits - to_device(targets.values, device)).square().mean(dim=1)
