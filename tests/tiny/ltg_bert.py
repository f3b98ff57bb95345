"""Tiny LTG-BERT models with large random weights: every term of the computation shows in the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.tiny.models import PROBLEM_TYPES, tiny_tokenizer

from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM, LtgBertForSequenceClassification
from tinyhat.encoder.quiet import quiet

LAYOUTS = ("split", "interleaved")
LENGTHS = [9, 45, 3, 9, 1, 17]  # 45 is beyond the 40 positions


def ltg_config(**changes: Any) -> LtgBertConfig:
    """Return a config of 3 layers, 4 heads and 40 positions in 12 buckets a side."""
    settings: dict[str, Any] = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "position_bucket_size": 12,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    return LtgBertConfig(**(settings | changes))


def ltg_model(kind: type = LtgBertForSequenceClassification, seed: int = 0, **changes: Any) -> Any:
    """Return a model of class `kind` in evaluation mode, its weights moved away from their small initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(ltg_config(**changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def ltg_sequences(lengths: list[int] | None = None) -> list[torch.Tensor]:
    """Return random ids, int64 [n], for every length."""
    random = np.random.default_rng(1)
    return [torch.from_numpy(random.integers(5, 200, n)) for n in lengths or LENGTHS]


def ltg_pack(sequences: list[torch.Tensor], gather: bool = True) -> dict[str, Any]:
    """Return what a packed model takes."""
    lengths = [len(x) for x in sequences]
    return {
        "input_ids": torch.cat(sequences)[None],
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        "max_seqlen": max(lengths),
        "gather": gather,
    }


def ltg_padded(sequences: list[torch.Tensor], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids padded with 0 and their mask, int64 [B, T] each."""
    side = "left" if left else "right"
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_side=side)
    ones = [torch.ones_like(x) for x in sequences]
    return ids, torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)


def save_ltg(folder: Path, kind: type = LtgBertForMaskedLM, task: str | None = None, **changes: Any) -> Path:
    """Write a tiny model with a tokenizer into `folder`, and return `folder`."""
    if task is not None:
        changes["problem_type"] = PROBLEM_TYPES[task]
    with quiet():
        ltg_model(kind, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
