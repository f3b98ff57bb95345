"""RoBERTa's shape with random weights: for speed and stability where the real ones cannot be had."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

NAME = "roberta-base:random"


def untrained_roberta(labels: int, seed: int, layers: int = 12, width: int = 768) -> RobertaForSequenceClassification:
    """Return a multi-label classifier with all its weights drawn from `seed`.

    Attention dropout is 0, as packed attention has none; padding is 0, where most tokenizers have it, so that token ids
    may be any tokenizer's with fewer than 50,265 entries.

    Args:
        labels: L.
        seed: of body and head.
        layers: 12 is RoBERTa-base.
        width: 768 is RoBERTa-base; a head is 64 wide.
    """
    shape = RobertaConfig(
        vocab_size=50265, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(2, width // 64),
        intermediate_size=4 * width, max_position_embeddings=514, type_vocab_size=1, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, attention_probs_dropout_prob=0.0, num_labels=labels,
        problem_type="multi_label_classification",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RobertaForSequenceClassification(shape)


def placeholder_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows what pads, for models that are given token ids."""
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 100}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
