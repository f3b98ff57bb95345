"""Replay: in every step the encoder also reads some of a text the user names, and must still guess its masked words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tinyhat.config import ReadingConfig, TrainConfig
from tinyhat.data.masking import Masking, mask_tokens
from tinyhat.data.packing import build_pack
from tinyhat.data.passages import read_passages
from tinyhat.data.reading import Reader
from tinyhat.encoder.hidden import MaskedHead, load_masked_lm
from tinyhat.encoder.load import Encoder, backend_tokenizer
from tinyhat.encoder.precision import Plan
from tinyhat.errors import UserError
from tinyhat.train.strategy import Strategy
from tinyhat.types import NOT_ASKED, IntArray, Pack

SHARE = 0.15  # of the tokens are masked, as in BERT's pretraining
TOKENS = 128  # tokens of a replayed sequence at most: pretraining's usual length, and cheap


class Replay(Strategy):
    """Add weight x the masked-LM loss of a few passages to every step (rehearsal, Robins 1995; in fine-tuning as the
    auxiliary loss of Chronopoulou et al. 2019 and Sun et al. 2019).

    The masked-LM head is the checkpoint's and stays frozen: what it could read from the body, it must still read.
    Passages and masks depend on (seed, step) alone and are the same on every rank, so that ranks agree.

    Args:
        encoder: whose checkpoint carries a masked-LM head.
        config: the train section: replay, replay_weight, replay_tokens, seed.
        plan: in which the loss is computed.
        device: where.

    Raises:
        UserError: the checkpoint has no masked-LM head, or the text cannot be read.
    """

    def __init__(self, encoder: Encoder, config: TrainConfig, plan: Plan, device: torch.device) -> None:
        assert config.replay is not None
        head = require_masked_lm(encoder)
        self.head, self.encoder, self.config, self.plan, self.device = head, encoder, config, plan, device
        most = min(TOKENS, encoder.max_positions or TOKENS)
        reader = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=most))
        self.reading = reader.read_cached(read_passages(config.replay))
        self.masking = masking_of(encoder, head.mask_id)

    def after_backward(self, step: int) -> None:
        """Add the gradient of the replayed passages to what learns in this step."""
        model = self.encoder.model
        learning = [p for p in model.base_model.parameters() if p.requires_grad]
        if not learning:
            return
        random = np.random.default_rng([self.config.seed, step, 1])
        pack = build_pack(self.reading, self._rows(random), self.encoder.first_position)
        pack = masked(pack, self.masking, random)
        self.head.model.train()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.plan.context(self.device):
            torch.manual_seed(int(random.integers(2**62)))  # dropout alike on every rank
            loss = self.head.loss(self.encoder, pack, self.device)
        share = loss * (self.config.replay_weight / max(1, asked(pack)))
        # grad, not backward: under DDP a second backward would find its hooks
        for parameter, gradient in zip(learning, torch.autograd.grad(share, learning, allow_unused=True), strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _rows(self, random: np.random.Generator) -> IntArray:
        """Draw passages until they hold ``replay_tokens``."""
        count = 1 + self.config.replay_tokens // 8
        drawn = random.integers(len(self.reading), size=count)
        within = np.cumsum(self.reading.lengths[drawn]) <= self.config.replay_tokens
        return np.asarray(drawn[: max(1, int(within.sum()))], dtype=np.int64)


def masking_of(encoder: Encoder, mask_id: int) -> Masking:
    """Return BERT's masking: every token but special ones on its own, with a chance of SHARE."""
    size = int(encoder.model.config.get_text_config().vocab_size)
    eligible = np.zeros(size, dtype=bool)
    eligible[: min(size, len(encoder.tokenizer))] = True
    eligible[[i for i in encoder.tokenizer.all_special_ids if i < size]] = False
    return Masking("subword", SHARE, mask_id, eligible, eligible)


def require_masked_lm(encoder: Encoder) -> MaskedHead:
    """Load the checkpoint's masked-LM head onto the encoder's body.

    Raises:
        UserError: the checkpoint has none.
    """
    head = load_masked_lm(encoder)
    if head is None:
        raise UserError(
            f"train.replay needs the masked-LM head of the checkpoint, and {encoder.name} has none: take an "
            "encoder that has it, or train.l2_sp"
        )
    return head


def masked(pack: Pack, masking: Masking, random: np.random.Generator) -> Pack:
    """Return `pack` with some of its tokens masked and asked for."""
    ids, targets = mask_tokens(pack.input_ids, pack.cu_seqlens, masking, random)
    return replace(pack, input_ids=ids, token_targets=targets)


def asked(pack: Pack) -> int:
    """Return how many tokens of a masked pack are asked for."""
    return 0 if pack.token_targets is None else int(np.count_nonzero(pack.token_targets != NOT_ASKED))
