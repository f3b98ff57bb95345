"""An encoder with the note's head (dropout, one linear layer on the first token) or its own, packed or padded."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from tinyhat.config import EncoderConfig, TrainConfig
from tinyhat.data.packing import StepPlan
from tinyhat.encoder.forward import rectangle
from tinyhat.encoder.load import Encoder, load_encoder, wrap_model
from tinyhat.encoder.untrained import NAME as UNTRAINED
from tinyhat.encoder.untrained import placeholder_tokenizer, untrained_roberta
from tinyhat.errors import UserError
from tinyhat.head.losses import document_losses
from tinyhat.train.objective import Classify
from tinyhat.types import Pack

SHAPE = (12, 768)  # layers and width of the model with random weights


class FirstToken(nn.Module):
    """In the pooler's place: the first token's state as it is."""

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, D]."""
        return hidden_BTD[:, 0]


class NoteHead(nn.Module):
    """Dropout and one linear layer; on [B, T, D] it reads the first token itself."""

    def __init__(self, width: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, T, D] or [B, D] to logits [B, L]."""
        first_BD = features[:, 0] if features.ndim == 3 else features
        return self.out_proj(self.dropout(first_BD))


def build(name: str, labels: tuple[str, ...], max_tokens: int, seed: int, head: str, layout: str) -> Encoder:
    """Load an encoder and put the head on it.

    Args:
        name: hub name, folder, ``minilm``, or ``roberta-base:random``: the same shape with random weights.
        labels: L names.
        max_tokens: most tokens of a document.
        seed: of what starts fresh.
        head: ``note`` or ``stock``.
        layout: ``packed`` or ``padded``; attention dropout is 0 in both, so that they differ in nothing else.

    Raises:
        UserError: the model cannot be had; the sentence names what can.
    """
    base = _base(name, labels, max_tokens, layout)
    encoder = replace(base, model=copy.deepcopy(base.model))
    if name == UNTRAINED:  # other weights for every seed, the same ones in both layouts
        encoder.model.load_state_dict(untrained_roberta(len(labels), seed, *SHAPE).state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in encoder.model.classifier.modules() if head == "stock" else ():
            encoder.model._init_weights(module)
    if head == "note":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            _put_note_head(encoder.model, len(labels))
    return encoder


@lru_cache(maxsize=2)
def _base(name: str, labels: tuple[str, ...], max_tokens: int, layout: str) -> Encoder:
    """Load once what every run of a grid starts from."""
    config = EncoderConfig(model=name, path="auto" if layout == "packed" else "padded", attention_dropout=0.0)
    if name == UNTRAINED:
        return wrap_model(name, untrained_roberta(len(labels), 0, *SHAPE), placeholder_tokenizer(), config)
    return load_encoder(name, "multi", labels, config, max_tokens, 0)


def _put_note_head(model: PreTrainedModel, labels: int) -> None:
    """Replace pooler and head; the encoder, and how it is packed, stays."""
    config = model.config
    head = NoteHead(config.hidden_size, labels, config.hidden_dropout_prob)
    nn.init.normal_(head.out_proj.weight, std=config.initializer_range)
    nn.init.zeros_(head.out_proj.bias)
    if getattr(model.base_model, "pooler", None) is not None:  # BERT: its own dropout stands before the classifier
        model.base_model.pooler = FirstToken()
        model.dropout = nn.Identity()
    elif not hasattr(model, "classifier"):
        raise UserError(f"--head note is for BERT and the RoBERTa family, not for {type(model).__name__}: --head stock")
    model.classifier = head


class Objective(Classify):
    """The classifier's loss, summed over labels as the package has it, or their mean.

    Args:
        encoder: the classifier.
        material: training documents.
        layout: ``padded`` cuts every step into micro-batches of `micro` rows, each padded to its longest.
        micro: see `layout`.
        mean: the loss of a document is the mean over labels instead of the sum.
    """

    def __init__(self, encoder: Encoder, material: object, layout: str, micro: int, mean: bool) -> None:
        super().__init__(encoder, material)  # type: ignore[arg-type]
        self.layout, self.micro, self.mean = layout, micro, mean

    def step_plan(self, config: TrainConfig, world_size: int) -> StepPlan:
        """Return the package's plan over random batches, or the one of micro-batches."""
        plan = replace(super().step_plan(config, world_size), window=1)
        return plan if self.layout == "packed" else MicroBatches(**vars(plan), micro=self.micro)

    def losses(self, encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return the losses of a pack, or of its rectangle."""
        if self.layout == "packed":
            losses = super().losses(encoder, pack, device)
        else:
            assert pack.targets is not None
            losses = document_losses(padded_logits(encoder, pack, device), pack.targets)
        return losses / pack.targets.width if self.mean and pack.targets is not None else losses


class MicroBatches(StepPlan):
    """Steps cut into micro-batches of equally many documents, in random order."""

    def __init__(self, micro: int, **plan: object) -> None:
        super().__init__(**plan)  # type: ignore[arg-type]
        object.__setattr__(self, "micro", micro)

    def packs(self, step: int, rank: int = 0) -> object:  # type: ignore[override]
        """Yield the rows of every micro-batch."""
        batch = self.batch(step)
        for begin in range(0, len(batch), self.micro):  # type: ignore[attr-defined]
            yield batch[begin : begin + self.micro], True  # type: ignore[attr-defined]


def padded_logits(encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
    """Return the logits [S, L] of a pack as one padded batch."""
    lengths = np.diff(pack.cu_seqlens).astype(np.int64)
    return encoder.model(**rectangle(encoder, pack, np.arange(len(lengths)), lengths, device)).logits
