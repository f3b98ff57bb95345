"""Whether a model may run packed: its logits and gradients are compared with the one-by-one forward, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

TOLERANCE = 1e-5  # of the largest hidden value, fp32; packed stock models stay below 1e-6, MobileBERT is at 2e-2
TOLERANCE_GRADIENT = 1e-4  # of the largest gradient: sums over tokens run in another order


def packing_fault(model: PreTrainedModel, first_position: int, max_positions: int | None, avoid: Iterable[int]) -> str:
    """Return why `model` must not run packed, or an empty string when it may.

    Five sequences of random tokens, one longer than any attention window, go through the model as one pack and one by
    one, with stock masks and no dropout. Compared are the logits, the gradient at the token embeddings, and the
    gradients of all biases and norms (each linear layer shows in one of them). Weights, gradients, training mode
    and random state stay as they were.

    Args:
        model: with packed attention and gather installed, fp32.
        first_position: position id of a first token.
        max_positions: most tokens of a sequence, or None.
        avoid: token ids with a meaning (padding, separators).
    """
    random = np.random.default_rng(0)
    windows = [int(w) for m in model.modules() if (w := getattr(m, "sliding_window", None))]
    windows.append(getattr(model.config, "position_bucket_size", 0))  # LTG-BERT: distances that share a bucket
    lengths = [min(n, max_positions or n) for n in (7, max(windows) + 12, 3, 9, 9)]
    allowed = np.setdiff1d(np.arange(model.config.get_text_config().vocab_size), np.fromiter(avoid, dtype=np.int64))
    sequences = [torch.from_numpy(random.choice(allowed, n))[None] for n in lengths]
    factors = torch.from_numpy(random.standard_normal((len(lengths), model.config.num_labels)).astype(np.float32))
    with _quiet(model), _token_embeddings(model) as embedded, torch.enable_grad():
        watched = [p for p in model.parameters() if p.requires_grad and p.dim() == 1]
        alone = [model(input_ids=x, attention_mask=torch.ones_like(x), output_hidden_states=True) for x in sequences]
        if not alone[0].hidden_states:
            return "it shows no hidden states to compare"
        largest = max(float(h.detach().abs().max()) for h in alone[0].hidden_states)
        expected = torch.cat([o.logits for o in alone])
        expected_gradients = _gradients(expected, factors, embedded, watched)
        embedded.clear()
        try:
            got = model(**_pack(sequences, lengths, first_position)).logits
        except (TypeError, RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:
            return f"its forward does not take a pack ({type(error).__name__})"
        if got.shape != expected.shape:
            return f"a pack of {len(lengths)} sequences gives logits of shape {tuple(got.shape)}"
        off = float((got - expected).detach().abs().max()) / largest
        if not off <= TOLERANCE:
            return f"packed logits differ from one-by-one logits by {off:.1e} of the largest hidden value"
        gradients = _gradients(got, factors, embedded, watched)
    scale = max(float(g.abs().max()) for g in expected_gradients)
    worst = torch.stack([(a - b).abs().max() for a, b in zip(gradients, expected_gradients, strict=True)]).max()
    off = float(worst) / scale  # torch's maximum keeps what is no number, Python's need not
    if not off <= TOLERANCE_GRADIENT:
        return f"packed gradients differ from one-by-one gradients by {off:.1e} of the largest"
    return ""


def _pack(sequences: list[torch.Tensor], lengths: list[int], first_position: int) -> dict[str, object]:
    return {
        "input_ids": torch.cat(sequences, dim=1),
        "position_ids": torch.cat([torch.arange(n) + first_position for n in lengths])[None],
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        "max_seqlen": max(lengths),
        "gather": True,
    }


def _gradients(
    logits: torch.Tensor, factors: torch.Tensor, embedded: list[torch.Tensor], watched: list[nn.Parameter]
) -> list[torch.Tensor]:
    """Gradients of a fixed random combination of logits; those at the embeddings laid end to end."""
    found = torch.autograd.grad((logits * factors).sum(), [*embedded, *watched], allow_unused=True)
    rows = torch.cat([g.flatten(0, 1) for g in found[: len(embedded)] if g is not None])
    return [
        rows,
        *(torch.zeros_like(p) if g is None else g for p, g in zip(watched, found[len(embedded) :], strict=True)),
    ]


@contextmanager
def _token_embeddings(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collect what the token embedding returns in every forward pass."""
    seen: list[torch.Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, _a, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode every module had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
