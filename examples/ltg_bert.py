"""LTG-BERT in plain transformers: built from a config, carried over from a masked LM, fine-tuned under Trainer.

    python examples/ltg_bert.py [MASKED_LM]

MASKED_LM is a run of ``tinyhat pretrain``, or a folder that `published.convert` wrote, with its tokenizer; without it
a small model with random weights and MiniLM's tokenizer stand in. Only the import of the classes is tinyhat's: it makes
them known to the Auto classes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from tinyhat.encoder.load import load_tokenizer
from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM

QUESTIONS = {
    "card": ["my card has not arrived yet", "where is the card you sent me", "the card is still not here",
             "I am waiting for my new card", "when will the card get here", "the new card did not come"],
    "rate": ["what is your exchange rate", "the rate for euros was wrong", "which exchange rate do you use",
             "how often do exchange rates change", "the rate you used is bad", "do you have good exchange rates"],
    "top-up": ["my top-up failed", "why was the top-up not accepted", "topping up does not work",
               "the top-up is still pending", "how do I top up by transfer", "my top-up was reverted"],
}  # fmt: skip


class Questions(Dataset):
    """Tokenised questions with their class."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        texts = [text for group in QUESTIONS.values() for text in group]
        self.inputs = tokenizer(texts, padding=True, return_tensors="pt")
        self.labels = torch.arange(len(QUESTIONS)).repeat_interleave(6)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {key: value[i] for key, value in self.inputs.items()} | {"labels": self.labels[i]}


def build(folder: Path) -> None:
    """A masked LM from a config, saved with a tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=load_tokenizer("minilm"), pad_token="[PAD]", mask_token="[MASK]"
    )
    config = LtgBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    LtgBertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def masked_lm_of(path: Path) -> Path:
    """The model's folder, of a run or given itself."""
    return path / "model" if (path / "model" / "config.json").is_file() else path


def transfer(folder: Path) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """The masked LM's encoder under a new head of three classes."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(QUESTIONS), output_loading_info=True
    )
    print("start fresh:", *sorted(report["missing_keys"]))
    return model, AutoTokenizer.from_pretrained(folder)


def fine_tune(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Trainer as it comes; accumulation changes nothing but memory."""
    questions = Questions(tokenizer)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=12,
        learning_rate=1e-3,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        logging_steps=12,
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(model, arguments, train_dataset=questions)
    trainer.train()
    found = trainer.predict(questions).predictions.argmax(-1)
    print(f"right on its own training questions: {(found == questions.labels.numpy()).mean():.2f}")


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = masked_lm_of(Path(sys.argv[1])) if len(sys.argv) > 1 else Path(name) / "masked_lm"
        if len(sys.argv) == 1:
            build(folder)
        model, tokenizer = transfer(folder)
        fine_tune(model, tokenizer, Path(name) / "trainer")


if __name__ == "__main__":
    main()
