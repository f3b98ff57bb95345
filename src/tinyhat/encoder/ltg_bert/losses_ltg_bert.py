"""Losses of the LTG-BERT heads. A saved model carries a copy of this file, so it imports only torch."""

import torch
from torch.nn import functional

IGNORED = -100


def guess_problem_type(labels: torch.Tensor, num_labels: int) -> str:
    """Return which of transformers' problem types `labels` belong to, as transformers guesses it.

    One output is a regression; integers of shape [B] are classes; everything else is a yes or no for each label.
    """
    if num_labels == 1:
        return "regression"
    whole = not labels.dtype.is_floating_point and labels.dtype != torch.bool
    return "single_label_classification" if whole and labels.dim() == 1 else "multi_label_classification"


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None, num_labels: int
) -> torch.Tensor:
    """Return the mean loss of a batch, computed in fp32.

    Args:
        logits: [B, L].
        labels: classes int64 [B]; 0 or 1 [B, L]; numbers [B, L], or [B] where L is 1.
        problem_type: as in the config; None: guessed from `labels`, and kept nowhere.
        num_labels: L.

    Raises:
        ValueError: the shape of `labels` does not fit the problem.
    """
    problem = problem_type or guess_problem_type(labels, num_labels)
    logits, labels = logits.float(), labels.to(logits.device)
    if problem == "single_label_classification":
        return token_loss(logits, labels)
    if labels.numel() != logits.numel():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)} ({problem})"
        )
    targets = labels.view_as(logits).float()
    if problem == "regression":
        return functional.mse_loss(logits, targets)
    return functional.binary_cross_entropy_with_logits(logits, targets)


def token_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None) -> torch.Tensor:
    """Return the mean cross entropy over the labels that are not -100, in fp32; 0 where there are none.

    Args:
        logits: [..., L].
        labels: int64 [...], the shape of `logits` without its last.
        num_items: divide by this instead: the labels of the whole effective batch, which HF Trainer counts.
    """
    labels = labels.to(logits.device).reshape(-1).long()
    total = functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), labels, ignore_index=IGNORED, reduction="sum"
    )
    if num_items is None:
        num_items = (labels != IGNORED).sum().clamp(min=1)
    elif isinstance(num_items, torch.Tensor):
        num_items = num_items.to(total.device)
    return total / num_items
