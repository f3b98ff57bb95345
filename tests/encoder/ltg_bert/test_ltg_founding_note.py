"""The founding note's two examples, as they stand there but for their imports, a small config and a path."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.tiny.ltg_bert import ltg_padded, ltg_sequences
from transformers import AutoModelForSequenceClassification

from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM, LtgBertForSequenceClassification
from tinyhat.encoder.quiet import quiet

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def test_basic_usage() -> None:
    input_ids, attention_mask = ltg_padded(ltg_sequences([9, 14]))
    labels = torch.tensor([0, 1])

    config = LtgBertConfig(vocab_size=16384, num_labels=2, **SMALL)  # Binary classification
    model = AutoModelForSequenceClassification.from_config(config)
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
    logits = outputs.logits
    loss = outputs.loss

    assert logits.shape == (2, 2)
    assert loss.shape == ()
    assert type(model) is LtgBertForSequenceClassification
    assert (config.hidden_dropout_prob, LtgBertConfig().hidden_size, LtgBertConfig().num_labels) == (0.1, 768, 2)


def test_transfer_learning_from_mlm(tmp_path: Path) -> None:
    with quiet():
        LtgBertForMaskedLM(LtgBertConfig(vocab_size=200, **SMALL)).save_pretrained(tmp_path)

        # 1. Load your pre-trained MLM model weights
        mlm_model = LtgBertForMaskedLM.from_pretrained(tmp_path)

    # 2. Create classification model with same config
    config = mlm_model.config
    config.num_labels = 3  # For 3-class classification
    classification_model = LtgBertForSequenceClassification(config)

    # 3. Transfer shared weights (embedding + transformer)
    classification_model.embedding.load_state_dict(mlm_model.embedding.state_dict())
    classification_model.transformer.load_state_dict(mlm_model.transformer.state_dict())

    input_ids, attention_mask = ltg_padded(ltg_sequences([9, 14]))
    classification_model.eval()
    mlm_model.eval()
    theirs = mlm_model.model(input_ids, attention_mask).last_hidden_state
    torch.testing.assert_close(classification_model.model(input_ids, attention_mask).last_hidden_state, theirs)
    assert classification_model(input_ids, attention_mask).logits.shape == (2, 3)
