"""GPT-2 of any size from its configuration, and its objective: next-token cross-entropy."""

from __future__ import annotations

import numpy as np
import torch
from config import Settings
from data import Data
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tinyhat.config import TrainConfig
from tinyhat.data.packing import StepPlan
from tinyhat.encoder.load import Encoder
from tinyhat.types import IntArray, Pack


def build(settings: Settings, vocabulary: int, seed: int) -> Encoder:
    """Return the model with fresh weights and no dropout, dressed as the loop expects it."""
    shape = GPT2Config(
        vocab_size=vocabulary, n_positions=settings.context, n_embd=settings.width, n_layer=settings.layers,
        n_head=settings.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(shape)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<|endoftext|>": 0})))
    reason = "one rectangle of windows"
    return Encoder(model, tokenizer, "gpt2", False, reason, [], 0, settings.context, 0, False)


class NextToken:
    """The objective: mean cross-entropy of a window's tokens, averaged over windows."""

    def __init__(self, data: Data) -> None:
        self.windows = data.train

    def step_plan(self, config: TrainConfig, world_size: int) -> StepPlan:
        """Return random batches of windows, a micro-batch to a pack."""
        lengths = np.full(len(self.windows), self.windows.shape[1] - 1, dtype=np.int64)
        return StepPlan(lengths, 1, config.batch_size, config.pack_tokens, config.seed, world_size)

    def pack(self, rows: IntArray, step: int) -> Pack:
        """Return windows laid end to end, each with the token it predicts last."""
        part = self.windows[rows]
        count, length = part.shape
        cu_seqlens = np.arange(0, (count + 1) * length, length, dtype=np.int32)
        within = np.tile(np.arange(length), count)
        return Pack(part.reshape(-1), within, cu_seqlens, length, np.arange(count), rows)

    def denominator(self, rows: IntArray, step: int) -> float:
        """Return the number of windows."""
        return float(len(rows))

    def losses(self, encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
        """Return the mean cross-entropy of every window, fp32 [B]."""
        ids = torch.from_numpy(pack.input_ids).to(device).view(len(pack.rows), -1)
        return window_losses(encoder, ids)


def window_losses(encoder: Encoder, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of every window (int64 [B, n + 1]), fp32 [B]."""
    logits = encoder.model(input_ids=ids[:, :-1]).logits
    losses = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).mean(dim=1)
