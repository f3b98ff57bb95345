"""Votes: the windows of a document become the document's logits. S windows, B documents, L labels, D width.

Whatever the vote, a document of one window keeps that window's logits, bit by bit.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tinyhat.config import ReadingConfig
from tinyhat.types import Task

LEARNED = ("attention", "transformer")  # head/learned_vote.py


def count_windows(document_S: torch.Tensor, documents: int) -> torch.Tensor:
    """Return the windows of each document, int64 [B], from int64 [S] ``sequence_doc``."""
    return torch.zeros(documents, dtype=torch.int64, device=document_S.device).index_add(
        0, document_S, torch.ones_like(document_S)
    )


def segment_mean(values: torch.Tensor, document_S: torch.Tensor, documents: int) -> torch.Tensor:
    """Return the mean of `values` ([S] or [S, L]) over the windows of each document, [B] or [B, L]."""
    counts = count_windows(document_S, documents).clamp(min=1).to(values.dtype)
    sums = torch.zeros((documents, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return sums.index_add(0, document_S, values) / counts.reshape(-1, *[1] * (values.ndim - 1))


def as_rectangle(
    values: torch.Tensor, document_S: torch.Tensor, documents: int, fill: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [B, W, ...] with the windows of each document side by side, and bool [B, W] where there is one.

    Args:
        values: [S, ...], documents in ascending order.
        document_S: int64 [S].
        documents: B.
        fill: value where a document has no such window.
    """
    counts = count_windows(document_S, documents)
    first = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(document_S), device=document_S.device) - first[document_S]
    width = max(int(counts.max()), 1) if documents else 1
    out = values.new_full((documents, width, *values.shape[1:]), fill)
    out = out.index_put((document_S, place), values)
    return out, torch.arange(width, device=document_S.device) < counts[:, None]


def vote_logits(
    logits_SL: torch.Tensor, document_S: torch.Tensor, documents: int, task: Task, config: ReadingConfig
) -> torch.Tensor:
    """Return the logits of every document, fp32 [B, L].

    mean: of the logits. mean_probability: the logits whose probabilities (softmax for single, sigmoid for multi) are
    the mean of the windows'. max: the highest logit of each label. top_k: the mean of its ``vote_k`` highest. majority:
    the logits of the shares of windows that choose a label (their best one; multi: above one half), the mean
    probability counting as one more window, so that ties are broken by it. Regression has no probabilities:
    mean_probability is the mean, majority the median.

    Args:
        logits_SL: [S, L] logits of the windows, documents in ascending order.
        document_S: int64 [S] ``sequence_doc``; every document has a window.
        documents: B.
        task: how logits become probabilities.
        config: `vote` (not a learned one) and `vote_k`.
    """
    logits = logits_SL.float()
    mean = segment_mean(logits, document_S, documents)
    if config.vote == "mean" or (config.vote == "mean_probability" and task == "regression"):
        return mean
    if config.vote == "max":
        index = document_S[:, None].expand_as(logits)
        return torch.zeros_like(mean).scatter_reduce(0, index, logits, "amax", include_self=False)
    if config.vote == "top_k":
        return _top_k(logits, document_S, documents, config.vote_k)
    if task == "regression":
        return _median(logits, document_S, documents)
    counts = count_windows(document_S, documents)
    alone = (counts == 1)[:, None]
    voted = _probability_vote(logits, document_S, documents, task, config.vote == "majority")
    return torch.where(alone, mean, voted)


def _probability_vote(
    logits: torch.Tensor, document_S: torch.Tensor, documents: int, task: Task, majority: bool
) -> torch.Tensor:
    """Return logits of mean probabilities, or of shares of windows; in log space, so that nothing rounds to 0 or 1."""
    counts = count_windows(document_S, documents)[:, None].to(logits.dtype)
    if task == "single":
        yes = _log_mean(F.log_softmax(logits, dim=1), document_S, documents)
        if not majority:
            return yes
        chosen = F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)
        votes = segment_mean(chosen, document_S, documents) * counts
        return torch.log((votes + yes.exp()) / (counts + 1)).clamp(min=torch.finfo(torch.float32).min)
    yes = _log_mean(F.logsigmoid(logits), document_S, documents)
    no = _log_mean(F.logsigmoid(-logits), document_S, documents)
    if not majority:
        return yes - no
    votes = segment_mean((logits > 0).to(logits.dtype), document_S, documents) * counts
    tiny = torch.finfo(torch.float32).tiny
    return torch.log((votes + yes.exp()).clamp(min=tiny)) - torch.log((counts - votes + no.exp()).clamp(min=tiny))


def _log_mean(log_values: torch.Tensor, document_S: torch.Tensor, documents: int) -> torch.Tensor:
    """Return the logarithm of the mean of exp(log_values) over windows, [B, L]."""
    index = document_S[:, None].expand_as(log_values)
    shape = (documents, log_values.shape[1])
    top = log_values.new_full(shape, -torch.inf).scatter_reduce(0, index, log_values.detach(), "amax")
    return torch.log(segment_mean((log_values - top[document_S]).exp(), document_S, documents)) + top


def _top_k(logits: torch.Tensor, document_S: torch.Tensor, documents: int, k: int) -> torch.Tensor:
    values, there = as_rectangle(logits, document_S, documents, -torch.inf)
    best = values.sort(dim=1, descending=True).values[:, :k]
    count = there.sum(dim=1).clamp(max=k)
    within = torch.arange(best.shape[1], device=best.device) < count[:, None]
    return torch.where(within[..., None], best, 0.0).sum(dim=1) / count[:, None]


def _median(logits: torch.Tensor, document_S: torch.Tensor, documents: int) -> torch.Tensor:
    values, there = as_rectangle(logits, document_S, documents, torch.inf)
    ordered = values.sort(dim=1).values
    count = there.sum(dim=1)
    rows = torch.arange(documents, device=logits.device)
    return (ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / 2
