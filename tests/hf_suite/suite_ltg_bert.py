"""Transformers' ModelTesterMixin over all LTG-BERT classes; run.py lays this file beside transformers' own tests.

It is no test module here: what it imports comes with transformers' source distribution, not with its wheel.
"""

from __future__ import annotations

import unittest

import torch
from hf_tests.test_configuration_common import ConfigTester
from hf_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from transformers.models.auto import modeling_auto

from tinyhat.encoder.ltg_bert import (
    LtgBertConfig,
    LtgBertForMaskedLM,
    LtgBertForSequenceClassification,
    LtgBertForTokenClassification,
    LtgBertModel,
)

# the mixin looks class names up to know which labels a class takes
for _names, _class in (
    (modeling_auto.MODEL_MAPPING_NAMES, LtgBertModel),
    (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, LtgBertForMaskedLM),
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, LtgBertForSequenceClassification),
    (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, LtgBertForTokenClassification),
):
    _names[LtgBertConfig.model_type] = _class.__name__


class Tester:
    """A tiny model and its inputs, as the mixin asks for them."""

    batch_size, seq_length, is_training = 3, 20, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, parent: unittest.TestCase, **changes: str) -> None:
        self.parent, self.changes = parent, changes

    def get_config(self) -> LtgBertConfig:
        return LtgBertConfig(
            vocab_size=99,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=48,
            max_position_embeddings=16,  # below seq_length
            position_bucket_size=8,
            **self.changes,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LtgBertConfig, dict[str, torch.Tensor]]:
        ids = ids_tensor([self.batch_size, self.seq_length], 99)
        return self.get_config(), {"input_ids": ids, "attention_mask": random_attention_mask(list(ids.shape))}


class LtgBertTest(ModelTesterMixin, unittest.TestCase):
    """The layout of the paper's later models, and the linear classifier."""

    all_model_classes = (
        LtgBertModel,
        LtgBertForMaskedLM,
        LtgBertForSequenceClassification,
        LtgBertForTokenClassification,
    )
    test_can_init_all_missing_weights_before_2023 = True  # else the most valuable test of initial weights is skipped
    changes: dict[str, str] = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.model_tester = Tester(self, **self.changes)
        self.config_tester = ConfigTester(self, config_class=LtgBertConfig, hidden_size=32, num_attention_heads=4)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class InterleavedTest(LtgBertTest):
    """The other layout and the other classifier."""

    changes = {"relative_qk_layout": "interleaved", "classifier_head": "mlp"}  # noqa: RUF012
