"""Under Hugging Face's Trainer, four batches of two accumulated are one batch of eight, for every problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.ltg_bert import ltg_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from tinyhat.encoder.ltg_bert import (
    LtgBertForMaskedLM,
    LtgBertForSequenceClassification,
    LtgBertForTokenClassification,
)

SEQUENCE = LtgBertForSequenceClassification
CASES = {
    "binary": (SEQUENCE, 2, lambda i: i % 2),
    "multi-class": (SEQUENCE, 3, lambda i: i % 3),
    "multi-label": (SEQUENCE, 3, lambda i: [float(i % 2), 1.0, float(i % 3 == 0)]),
    "regression": (SEQUENCE, 1, lambda i: i / 4),
    "tokens": (LtgBertForTokenClassification, 3, lambda i: [(i + j) % 3 if j <= i else -100 for j in range(8)]),
    "masked LM": (LtgBertForMaskedLM, 3, lambda i: [7 * j if j <= i else -100 for j in range(8)]),
}


class Examples(Dataset):
    """Eight sequences of eight tokens; token problems ask one token of the first, two of the second, and so on."""

    def __init__(self, label: Any) -> None:
        random = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, 200, (8, 8), generator=random)
        self.labels = [torch.tensor(label(i)) for i in range(8)]

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def first_step(case: str, batch: int, folder: Path) -> dict[str, float]:
    kind, count, label = CASES[case]
    model = ltg_model(kind, num_labels=count, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 // batch,
        max_steps=1,
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Examples(label))
    trainer.train()
    logged = trainer.state.log_history[0]
    return {"loss": logged["loss"], "gradient": float(logged["grad_norm"])}


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_accumulation(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = (first_step(case, batch, tmp_path) for batch in (8, 2))
    assert whole["loss"] > 0
    assert parts["loss"] == pytest.approx(whole["loss"], rel=2e-4)  # Trainer logs four digits
    assert parts["gradient"] == pytest.approx(whole["gradient"], rel=1e-4)
