# Copyright 2026 The tinyhat authors. Licensed under the Apache License, Version 2.0.
"""What an LTG-BERT is made of. A saved model carries a copy of this file, so it imports only transformers."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class LtgBertConfig(PreTrainedConfig):
    r"""Sizes, dropouts and variants of LTG-BERT (Samuel et al. 2023, arXiv 2303.09859).

    Args:
        vocab_size: V, entries of the tokenizer.
        hidden_size: H, a multiple of `num_attention_heads`.
        num_hidden_layers: number of layers.
        num_attention_heads: N.
        intermediate_size: width of the gated feed-forward layer; the paper takes 8/3 H.
        hidden_dropout_prob: of the embeddings, the feed-forward layers and, unless `classifier_dropout` is set, heads.
        attention_probs_dropout_prob: of relative embeddings, attention probabilities and attention outputs.
        max_position_embeddings: M; distances from M - 1 on share a bucket. Longer sequences are read all the same.
        position_bucket_size: B; there are 2 B - 1 buckets of distances.
        layer_norm_eps: of every LayerNorm.
        relative_qk_layout: how the position projections are cut into heads, ``split`` (NorBERT 3, BabyLM) or
            ``interleaved`` (the British National Corpus models). The weights have the same names and shapes in both.
        classifier_head: ``linear`` (dropout and one linear layer) or ``mlp`` (the published wrappers' six layers).
        classifier_dropout: None takes `hidden_dropout_prob`.
        pad_token_id: 3 in the published tokenizers; the model itself knows no padding token.
        tie_word_embeddings: the masked-LM output matrix is the word embedding.
    """

    model_type = "ltg_bert"

    vocab_size: int = 16384
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 2048
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    position_bucket_size: int = 32
    layer_norm_eps: float = 1e-7
    relative_qk_layout: Literal["split", "interleaved"] = "split"
    classifier_head: Literal["linear", "mlp"] = "linear"
    classifier_dropout: float | int | None = None
    pad_token_id: int | None = 3
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Take unknown settings as attributes, and refuse sizes that do not fit together."""
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not divisible by num_attention_heads = {self.num_attention_heads}"
            )
        if not 4 <= self.position_bucket_size <= self.max_position_embeddings:
            raise ValueError(
                f"position_bucket_size = {self.position_bucket_size} is not between 4 and max_position_embeddings = "
                f"{self.max_position_embeddings}"
            )
