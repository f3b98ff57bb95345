# Copyright 2026 The tinyhat authors. Licensed under the Apache License, Version 2.0.
"""LTG-BERT for transformers. A saved model carries a copy of this file, so it imports only torch and transformers."""

import inspect
import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ltg_bert import LtgBertConfig
from .layers_ltg_bert import (
    LtgBertAttention,
    LtgBertEmbedding,
    LtgBertEncoder,
    LtgBertHead,
    LtgBertLayer,
    distance_index,
    position_buckets,
)
from .losses_ltg_bert import classification_loss, token_loss

_AUTO_MAP = {
    "AutoConfig": "configuration_ltg_bert.LtgBertConfig",
    "AutoModel": "modeling_ltg_bert.LtgBertModel",
    "AutoModelForMaskedLM": "modeling_ltg_bert.LtgBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_ltg_bert.LtgBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_ltg_bert.LtgBertForTokenClassification",
}


class LtgBertPreTrainedModel(PreTrainedModel):
    """Initial weights, and what transformers must know of this family."""

    config: LtgBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LtgBertLayer", "LtgBertEmbedding"]  # noqa: RUF012
    _supports_sdpa = True
    # before transformers 5.17 its flex function has no position_bias and would drop it in silence
    _supports_flex_attn = "position_bias" in inspect.signature(flex_attention_forward).parameters
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": LtgBertLayer, "attentions": LtgBertAttention}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"position_indices$"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw matrices from a normal of deviation sqrt(2 / (5 H)) cut at twice that, feed-forward scaled by depth."""
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        if isinstance(module, nn.Linear | nn.Embedding):
            std *= getattr(module, "init_scale", 1.0)
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LtgBertEmbedding):
            init.trunc_normal_(module.relative_embedding, std=std, a=-2 * std, b=2 * std)
            init.copy_(module.position_buckets, position_buckets(module.buckets, module.positions))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, and name all four classes: a masked LM can then be loaded as a classifier."""
        if self._auto_class is not None:
            self.config.auto_map = dict(_AUTO_MAP)
        super().save_pretrained(*args, **kwargs)


class LtgBertModel(LtgBertPreTrainedModel):
    """Embeddings and layers; the stream behind the last layer is not normed (the heads begin with a norm)."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.embedding = LtgBertEmbedding(config)
        self.transformer = LtgBertEncoder(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding."""
        return self.embedding.word_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.embedding.word_embedding = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Return `last_hidden_state` [B, T, H].

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T] of any dtype, true or 1 where a token counts; [B, 1, T, T] as transformers has it;
                None: all count.
            token_type_ids: taken so that any tokenizer's output fits, and not used: the model has no segments.
            position_ids: likewise, the model has relative positions only.
            inputs_embeds: [B, T, H] instead of `input_ids`.
            **kwargs: transformers' own, and in packs run by tinyhat `cu_seqlens`, `max_seqlen` and `gather`.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`; a pack without packed attention.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        hidden_states = self.embedding(input_ids, inputs_embeds)
        index = self.embedding.table()
        if kwargs.get("cu_seqlens") is None:
            index = distance_index(index, hidden_states.shape[1])
        elif self.config._attn_implementation != "tinyhat":
            raise ValueError(
                f"cu_seqlens was given, but {self.config._attn_implementation} attention would look across its "
                "boundaries: load the model with tinyhat"
            )
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask)
        states = self.transformer(hidden_states, mask, self.embedding.relative(), index, **kwargs)
        return BaseModelOutput(last_hidden_state=states)


class _WithBody(LtgBertPreTrainedModel):
    """A model with a head; `embedding` and `transformer` are at hand as in the original, flat classes."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.model = LtgBertModel(config)

    @property
    def embedding(self) -> LtgBertEmbedding:
        """The embeddings of the body."""
        return self.model.embedding

    @property
    def transformer(self) -> LtgBertEncoder:
        """The layers of the body."""
        return self.model.transformer


class LtgBertForMaskedLM(_WithBody):
    """Predicts masked tokens; the output matrix is the word embedding unless the config unties them."""

    _tied_weights_keys = {"lm_head.out_proj.weight": "model.embedding.word_embedding.weight"}  # noqa: RUF012

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.lm_head = LtgBertHead(config, config.vocab_size, config.hidden_dropout_prob)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.lm_head.out_proj

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output layer."""
        self.lm_head.out_proj = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Return logits [B, T, V], and with `labels` (int64 [B, T], -100 where nothing is asked) the mean loss.

        The other arguments are `LtgBertModel`'s. `num_items_in_batch` replaces the number of labels as divisor.
        """
        outputs = self.model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, kwargs.get("num_items_in_batch"))
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class _WithClassifier(_WithBody):
    """A classifier: ``linear`` is the attribute `classifier`, ``mlp`` the attribute `head`, as in their checkpoints."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        given = config.classifier_dropout
        dropout = config.hidden_dropout_prob if given is None else given
        if config.classifier_head == "mlp":
            self.head = LtgBertHead(config, config.num_labels, dropout)
        else:
            self.dropout = nn.Dropout(dropout)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def classify(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits [..., L] of states [..., H]."""
        return self.head(states) if self.config.classifier_head == "mlp" else self.classifier(self.dropout(states))


class LtgBertForSequenceClassification(_WithClassifier):
    """Classes, several labels or numbers for a sequence, read from its first token."""

    # or HF Trainer would multiply loss and gradient by its accumulation steps: a mean over documents is meant
    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Return logits [B, L], and with `labels` the mean loss; what they may be is said in `classification_loss`.

        The other arguments are `LtgBertModel`'s.
        """
        outputs = self.model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        logits = self.classify(outputs.last_hidden_state[:, 0])
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type, self.config.num_labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class LtgBertForTokenClassification(_WithClassifier):
    """A class for every token."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Return logits [B, T, L], and with `labels` (int64 [B, T], -100 where nothing is asked) the mean loss.

        The other arguments are `LtgBertModel`'s. `num_items_in_batch` replaces the number of labels as divisor.
        """
        outputs = self.model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        logits = self.classify(outputs.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, kwargs.get("num_items_in_batch"))
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)
