"""Votes with weights of their own, over the vectors that the output layer sees. S windows, B documents, D width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tinyhat.config import ReadingConfig
from tinyhat.decision import VOTE_FILE
from tinyhat.errors import UserError
from tinyhat.head.output import VOTE, output_layer
from tinyhat.head.vote import as_rectangle, count_windows

LAYERS, HEADS = 2, 4
POSITIONS = 64  # learned positions of windows; those beyond share the last one


class AttentionVote(nn.Module):
    """One weight per window: softmax over a document's windows of w · tanh(V h) (Yang et al. 2016; Ilse et al. 2018).

    w starts at 0, so that training begins with the mean of the windows.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.score = nn.Parameter(torch.zeros(width))

    def forward(self, vectors_SD: torch.Tensor, document_S: torch.Tensor, documents: int) -> torch.Tensor:
        """Return the weighted mean of the windows of each document, [B, D]."""
        scores = torch.tanh(self.inner(vectors_SD)) @ self.score
        rows, _ = as_rectangle(scores, document_S, documents, -torch.inf)
        vectors, _ = as_rectangle(vectors_SD, document_S, documents, 0.0)
        return (rows.softmax(dim=1)[..., None] * vectors).sum(dim=1)


class TransformerVote(nn.Module):
    """A small transformer over window vectors in their order, then their mean (ToBERT, Pappagari et al. 2019).

    A document of one window keeps its vector as it is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = next(h for h in (HEADS, 2, 1) if width % h == 0)
        self.position = nn.Parameter(torch.zeros(POSITIONS, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )

    def forward(self, vectors_SD: torch.Tensor, document_S: torch.Tensor, documents: int) -> torch.Tensor:
        """Return one vector per document, [B, D]."""
        plain, there = as_rectangle(vectors_SD, document_S, documents, 0.0)
        places = torch.arange(plain.shape[1], device=plain.device).clamp(max=POSITIONS - 1)
        hidden = plain + self.position[places]
        blocked = torch.where(there, 0.0, -torch.inf).to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=blocked)
        hidden = torch.where(there[..., None], hidden, 0.0).sum(dim=1) / there.sum(dim=1)[:, None]
        alone = (count_windows(document_S, documents) == 1)[:, None]
        return torch.where(alone, plain[:, 0], hidden)


def check_vote(config: ReadingConfig) -> None:
    """Refuse what only windows have where there are none, and a vote that cannot be learned from.

    Raises:
        UserError: one of these.
    """
    if config.strategy != "windows":
        for key in ("vote", "stride", "title_tokens", "learn"):
            value = getattr(config, key)
            if value != ReadingConfig.model_fields[key].default:
                raise UserError(f"reading.{key} = {value!r} needs windows: set --windows (reading.strategy=windows)")
    if config.learn == "document" and config.vote == "majority":
        raise UserError("reading.vote = 'majority' has no gradient: set reading.learn=windows, or another vote")


def attach_vote(model: nn.Module, labels: int, vote: str, seed: int) -> None:
    """Make a learned vote part of `model`, so that optimiser and checkpoints hold it; other votes need nothing.

    Args:
        model: a classifier.
        labels: L.
        vote: ``attention`` or ``transformer``; else nothing happens.
        seed: of the initial weights.
    """
    kinds = {"attention": AttentionVote, "transformer": TransformerVote}
    if vote not in kinds:
        return
    width = output_layer(model, labels).in_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kinds[vote](width)
    setattr(model, VOTE, module.to(next(model.parameters()).device))


def vote_of(model: nn.Module) -> nn.Module | None:
    """Return the learned vote of `model` (under whatever wrapper), or None."""
    found = getattr(getattr(model, "module", model), VOTE, None)
    return found if isinstance(found, nn.Module) else None


@contextmanager
def without_vote(model: nn.Module) -> Iterator[nn.Module | None]:
    """Within it `model` is the stock classifier, to be saved for plain transformers; yields the vote."""
    vote = vote_of(model)
    if vote is not None:
        delattr(model, VOTE)
    try:
        yield vote
    finally:
        if vote is not None:
            setattr(model, VOTE, vote)


def save_vote(vote: nn.Module, folder: Path) -> None:
    """Write the weights of a learned vote beside model.safetensors."""
    save_file(
        {name: t.detach().float().contiguous().cpu() for name, t in vote.state_dict().items()}, folder / VOTE_FILE
    )


def load_vote(model: nn.Module, labels: int, vote: str, folder: Path) -> None:
    """Attach the learned vote that `save_vote` wrote; other votes need nothing.

    Raises:
        UserError: the file is missing or does not fit.
    """
    attach_vote(model, labels, vote, 0)
    module = vote_of(model)
    if module is None:
        return
    try:
        module.load_state_dict(load_file(folder / VOTE_FILE))
    except (OSError, RuntimeError, SafetensorError):
        raise UserError(f"{folder / VOTE_FILE} is missing or does not fit: copy the whole model folder again") from None


@contextmanager
def with_vectors(layer: nn.Linear) -> Iterator[None]:
    """Within it the model's logits are [S, L + D]: behind them the vectors that the output layer saw, in fp32.

    This way they come along through whatever lies between the layer and the caller (padding, gathering, DDP).
    """

    def append(_: nn.Module, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits.float(), inputs[0].float()], dim=-1)

    handle = layer.register_forward_hook(append)
    try:
        yield
    finally:
        handle.remove()


def learned_logits(
    vote: nn.Module, layer: nn.Linear, both_SLD: torch.Tensor, document_S: torch.Tensor, documents: int
) -> torch.Tensor:
    """Return the logits of every document, fp32 [B, L].

    Args:
        vote: of `attach_vote`.
        layer: the output layer, which is applied to the document's vector (outside `with_vectors`).
        both_SLD: [S, L + D] logits and vectors, from a forward pass within `with_vectors`.
        document_S: int64 [S].
        documents: B.
    """
    logits, vectors = both_SLD[:, : layer.out_features].float(), both_SLD[:, layer.out_features :]
    with torch.autocast(both_SLD.device.type, enabled=False):
        vector = vote(vectors.to(next(vote.parameters()).dtype), document_S, documents)
        voted = layer(vector.to(layer.weight.dtype)).float()
    alone = count_windows(document_S, documents) == 1
    rows, _ = as_rectangle(logits, document_S, documents, 0.0)
    # a product of another number of rows may round differently: what one window said is taken as it is
    return torch.where(alone[:, None], rows[:, 0], voted)
