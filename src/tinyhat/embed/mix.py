"""The learned scalar mix over layers: one softmax weight a layer, as in ELMo.

Peters et al. 2018, "Deep contextualized word representations", equation 1; its factor gamma is left to the linear map
that follows. All poolings but `max` are weighted sums over tokens, so a mix of pooled layers is the pooled mix.
K hidden states, N documents, D width, C columns of answers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tinyhat.types import IntArray, Targets, Task

STEPS = 150
BATCH = 512
RATE_MAP, RATE_MIX = 0.01, 0.1  # of Adam; the mix has few weights, each of which every document pulls at
DECAY = 1e-3

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_LOSSES: dict[Task, Loss] = {
    "single": lambda found, wanted: functional.cross_entropy(found, wanted),
    # summed over labels: the mean over many leaves gradients too small to learn from
    "multi": lambda found, wanted: (
        functional.binary_cross_entropy_with_logits(found, wanted, reduction="none").sum(1).mean()
    ),
    "regression": lambda found, wanted: functional.mse_loss(found, wanted),
}


def learn_mix(features_KND: npt.NDArray[np.float32], targets: Targets, rows: IntArray, seed: int = 0) -> list[float]:
    """Return K weights that add up to 1, learned together with a linear map from mixed features to answers.

    Args:
        features_KND: float32 [K, N, D], the pooled hidden states of N documents, layer by layer (may be a memory map).
        targets: of the N documents.
        rows: int64 [M], the documents to learn from.
        seed: of the order of documents.
    """
    order = np.random.default_rng(seed)
    scale = float(np.sqrt(np.mean([np.square(layer[rows[:BATCH]]).mean() for layer in features_KND]))) or 1.0
    mix = torch.zeros(len(features_KND), requires_grad=True)
    linear = torch.nn.Linear(features_KND.shape[2], targets.width)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    groups = [{"params": [*linear.parameters()], "lr": RATE_MAP}, {"params": [mix], "lr": RATE_MIX}]
    optimiser = torch.optim.Adam(groups)
    centre, spread = _answer_scale(targets, rows)
    loss = _LOSSES[targets.task]
    steps = STEPS * max(1, min(4, len(rows) // (8 * BATCH)))
    for step in range(steps):
        chosen = np.sort(order.choice(rows, min(BATCH, len(rows)), replace=False))
        batch = torch.from_numpy(np.ascontiguousarray(features_KND[:, chosen])) / scale
        mixed = torch.einsum("k,knd->nd", mix.softmax(0), batch)
        wanted = targets.take(chosen)
        if targets.task == "single":
            answers = torch.from_numpy(wanted.values)
        else:
            answers = torch.from_numpy((wanted.dense() - centre) / spread)
        value = loss(linear(mixed), answers) + DECAY * linear.weight.square().sum()
        optimiser.zero_grad()
        value.backward()
        for group, rate in zip(groups, (RATE_MAP, RATE_MIX), strict=True):
            group["lr"] = rate * (1 - step / steps)
        optimiser.step()
    weights = mix.detach().double().softmax(0).numpy()
    return [float(w) for w in weights / weights.sum()]


def mixed(features_KND: npt.NDArray[np.float32], weights: list[float]) -> npt.NDArray[np.float32]:
    """Return the mix float32 [N, D] of features [K, N, D]."""
    out = np.zeros(features_KND.shape[1:], np.float32)
    for layer, weight in zip(features_KND, weights, strict=True):
        out += np.float32(weight) * layer
    return out


def _answer_scale(targets: Targets, rows: IntArray) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and spread of regression targets, by which a loss in any unit is the same; 0 and 1 for labels."""
    if targets.task != "regression":
        return np.zeros(1, np.float32), np.ones(1, np.float32)
    values = targets.values[rows].astype(np.float32)
    spread = values.std(axis=0)
    return values.mean(axis=0), np.where(spread > 0, spread, 1).astype(np.float32)
