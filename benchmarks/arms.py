"""The arms of benchmarks/train.py: each trains in a process of its own and works only while it holds the turn.

Processes, because accelerate keeps one state per process and the arms differ in precision; a waiting arm sleeps.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tinyhat.config import Config, EncoderConfig, ReadingConfig
from tinyhat.data.dataset import Split
from tinyhat.data.labels import LabelSpace
from tinyhat.data.reading import Reader
from tinyhat.encoder.load import Encoder, backend_tokenizer, load_encoder
from tinyhat.encoder.precision import choose_plan
from tinyhat.head.losses import document_losses
from tinyhat.head.output import output_layer, start_at_prior
from tinyhat.head.predictor import TorchPredictor
from tinyhat.run import Run
from tinyhat.train.classifier import quick_metric
from tinyhat.train.loop import Trainer as Loop
from tinyhat.train.objective import Classify, Material
from tinyhat.train.optim import base_rate, parameter_groups
from tinyhat.types import IntArray, Scores, Targets, Task

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """The same work for every arm.

    Attributes:
        config: model, reading and train sections.
        task: of the corpus.
        labels: its label space.
        documents: training documents behind the label counts.
        split: the documents to train on.
        dev: the documents to measure on.
        lengths: int64 [N], tokens of `split` as they are read.
    """

    config: Config
    task: Task
    labels: LabelSpace
    documents: int
    split: Split
    dev: Split
    lengths: IntArray

    @property
    def steps(self) -> int:
        """Optimiser steps of every arm."""
        return int(np.ceil(self.config.train.epochs * len(self.split) / self.config.train.batch_size))

    def encoder(self, dropout: float | None) -> Encoder:
        """Return the encoder every arm starts from; None is the packed one, a number its padded attention dropout."""
        path = "auto" if dropout is None else "padded"
        settings = EncoderConfig(model=self.config.encoder.model, path=path, attention_dropout=dropout)
        tokens = self.config.reading.max_tokens
        encoder = load_encoder(settings.model, self.task, self.labels.names, settings, tokens, 0)
        start_at_prior(output_layer(encoder.model, len(self.labels)), self.labels.train_counts, self.documents)
        return encoder

    def flops_per_document(self) -> float:
        """Return matrix-product FLOPs of one real document, forward and backward, pads not counted.

        6 per weight and token in the layers, 12 x layers x width x length per token for attention, 6 per head weight.
        """
        model = self.encoder(None).model
        config = model.config
        weights = sum(p.numel() for n, p in model.base_model.named_parameters() if p.ndim == 2 and "embedding" not in n)
        attention = (
            12.0 * config.num_hidden_layers * config.hidden_size * float(np.mean(self.lengths.astype(float) ** 2))
        )
        return 6.0 * weights * float(self.lengths.mean()) + attention + 6.0 * config.hidden_size * config.num_labels


class Arm:
    """One competitor, in a process of its own.

    Args:
        job: the work.
        folder: for what it writes.
        pipe: a message comes when it may work; one goes back when its turn is over.
        turn: steps in a turn.
    """

    def __init__(self, job: Job, folder: Path, pipe: Connection, turn: int) -> None:
        self.job, self.folder, self.pipe, self.turn = job, folder, pipe, turn
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.tokenise_seconds = 0.0
        self.model: Any = None
        self._since = 0.0

    def run(self) -> None:
        """Train and measure; the result (or the error) is the last message."""
        self.pipe.recv()
        try:
            self.train()
            metric, value = quick_metric(self.score())
        except Exception as error:
            self.pipe.send({"error": f"{type(error).__name__}: {error}"})
            return
        found = {"seconds": self.seconds, "losses": self.losses, "tokenise_seconds": self.tokenise_seconds}
        self.pipe.send(found | {"metric": metric, "value": value})

    def train(self) -> None:
        """Train to the end, calling `begin_step` and `end_step` around every optimiser step."""
        raise NotImplementedError

    def begin_step(self) -> None:
        """Start the clock of a step, after the turn has come."""
        self._since = time.perf_counter()

    def end_step(self) -> None:
        """Stop the clock; hand the turn on after a few steps and wait for the next."""
        self.seconds.append(time.perf_counter() - self._since)
        if len(self.seconds) % self.turn == 0:
            _release_memory()
            self.pipe.send(None)
            self.pipe.recv()
        self._since = time.perf_counter()

    def score(self) -> Scores:
        """Return fp32 scores of the dev documents."""
        encoder = self.job.encoder(None)
        encoder.model.load_state_dict(self.model.state_dict())
        reader = Reader(backend_tokenizer(encoder), self.job.config.reading)
        predictor = TorchPredictor(encoder, reader, choose_plan("fp32", CPU), CPU, 8192)
        dev = self.job.dev
        return Scores(dev.ids, predictor.logits(reader.read(dev.texts)), dev.targets)


def _release_memory() -> None:
    """Give freed memory back: a padded arm that waited with 8 GB of it left 24 GB too small for the next."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def run_arm(name: str, job: Job, folder: Path, pipe: Connection, turn: int) -> None:
    """Run one arm; the target of its process."""
    folder.mkdir(parents=True)
    ARMS[name](job, folder, pipe, turn).run()


class Tinyhat(Arm):
    """Ours, as `tinyhat train` runs it."""

    def train(self) -> None:
        """Read, then the loop's own steps with their log line."""
        encoder = self.job.encoder(None)
        self.model = encoder.model
        begin = time.perf_counter()
        reader = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=self.job.config.reading.max_tokens))
        reading = reader.read(self.job.split.texts)
        self.tokenise_seconds = time.perf_counter() - begin
        objective = Classify(encoder, Material(reading, self.job.split.targets))
        loop = Loop(encoder, objective, self.job.config.train, choose_plan("auto", CPU), Run(self.folder))
        self.begin_step()
        for _ in range(self.job.steps):
            self.losses.append(loop.train_step()["loss"])
            self.end_step()


class Hugging(Arm):
    """HF Trainer. Subclasses say which options."""

    attention_dropout: float | None = 0.1
    options: dict[str, Any] = {}  # noqa: RUF012

    def train(self) -> None:
        """Tokenise as the HF examples do, then Trainer.train."""
        encoder = self.job.encoder(self.attention_dropout)
        self.model = encoder.model
        arm, targets = self, self.job.split.targets
        begin = time.perf_counter()
        most = self.job.config.reading.max_tokens
        ids = encoder.tokenizer(self.job.split.texts, truncation=True, max_length=most)["input_ids"]
        self.tokenise_seconds = time.perf_counter() - begin
        documents = [{"input_ids": x, "labels": i, "length": len(x)} for i, x in enumerate(ids)]
        config = self.job.config.train
        optimizer = torch.optim.AdamW(
            parameter_groups(encoder.model, config, base_rate(config, encoder.model.config.hidden_size)), fused=True
        )
        trainer = SummedLoss(
            model=encoder.model,
            args=TrainingArguments(
                output_dir=str(self.folder),
                per_device_train_batch_size=config.batch_size,
                max_steps=self.job.steps,
                warmup_steps=int(np.ceil(config.warmup_ratio * self.job.steps)),
                logging_steps=1,
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                seed=0,
                **self.options,
            ),
            train_dataset=documents,
            data_collator=DataCollatorWithPadding(encoder.tokenizer),
            optimizers=(optimizer, None),
            callbacks=[_Clock(arm)],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is the table's
        trainer.targets = targets
        trainer.train()


class SummedLoss(Trainer):
    """Trainer with the loss of this benchmark: BCE summed over labels, mean over documents."""

    targets: Targets

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss of a batch whose ``labels`` are row numbers."""
        rows = inputs.pop("labels").numpy()
        inputs.pop("length", None)
        outputs = model(**inputs)
        loss = document_losses(outputs.logits, self.targets.take(rows)).mean()
        return (loss, outputs) if return_outputs else loss


class _Clock(TrainerCallback):
    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.arm.begin_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.arm.losses.append(logs["loss"])
            self.arm.end_step()  # a step is from log to log: collation, forward, backward, optimiser, logging


class HuggingDefault(Hugging):
    """Defaults: fp32, the checkpoint's dropouts, random batches padded to their longest."""


class HuggingBf16(Hugging):
    """bf16 autocast, all else as the defaults."""

    options = {"bf16": True}  # noqa: RUF012


class HuggingTuned(Hugging):
    """What an expert sets: bf16, attention dropout 0, batches grouped by length."""

    attention_dropout = 0.0
    options = {"bf16": True, "train_sampling_strategy": "group_by_length"}  # noqa: RUF012


ARMS: dict[str, type[Arm]] = {
    "hf_default": HuggingDefault,
    "hf_bf16": HuggingBf16,
    "hf_tuned": HuggingTuned,
    "tinyhat": Tinyhat,
}
