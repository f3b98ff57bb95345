"""The arms of benchmarks/gpu.py: the package's loop under a plan, packed or padded, and HF Trainer."""

from __future__ import annotations

import copy
import gc
import os
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from gpu_profile import profile_steps
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tinyhat.config import EncoderConfig, TrainConfig
from tinyhat.data.reading import Reading
from tinyhat.encoder.load import Encoder, wrap_model
from tinyhat.encoder.untrained import NAME, placeholder_tokenizer, untrained_roberta
from tinyhat.head.losses import document_losses
from tinyhat.run import Run
from tinyhat.train.flops import peak_flops, step_flops
from tinyhat.train.loop import Trainer as Loop
from tinyhat.train.objective import Classify, Material
from tinyhat.train.precision import choose_train_plan
from tinyhat.types import IntArray, Targets

# in order of interest; the plans follow while time lasts, and last what compiles, half a minute each
FIRST = (
    "amp_bf16_fp32_head", "hf_trainer", "amp_bf16_fp32_head+padded", "bf16_master", "bf16_master+padded",
    "bf16_pure_fused", "amp_bf16", "fp32", "tf32", "amp_fp16", "amp_fp16+padded",
)  # fmt: skip
LAST = (
    "bf16_compile", "fp8_rowwise", "amp_bf16_fp32_head+compile", "bf16_master+compile", "fp8_tensorwise",
    "fp8_rowwise_gw_hp", "amp_bf16_fp8opt",
)  # fmt: skip
WARMUP, TIMED = 3, 6  # steps; compiled arms compile in the first
SLOW = {"fp32": 2}  # timed steps where a step takes long


@dataclass(frozen=True)
class Job:
    """The same documents for every arm.

    Attributes:
        reading: token ids.
        targets: multi-hot labels.
        batch: documents of an optimiser step.
        pack_tokens: token budget of a pack.
        layers: of the encoder; 12 is RoBERTa-base.
        width: of the encoder.
    """

    reading: Reading
    targets: Targets
    batch: int
    pack_tokens: int
    layers: int = 12
    width: int = 768

    @property
    def shape(self) -> str:
        """Return the model in words."""
        return f"RoBERTa {self.layers} x {self.width}, {self.targets.width:,} labels, random weights"


def toy(job: Job) -> Job:
    """Return the job small enough for a processor: it shows that every arm runs, and nothing else."""
    rows = np.arange(16)
    ends = np.concatenate([[0], np.cumsum(np.minimum(job.reading.lengths[rows], 24))]).astype(np.int64)
    ids = np.concatenate([job.reading.input_ids[job.reading.indptr[i] :][:24][: ends[i + 1] - ends[i]] for i in rows])
    lengths = np.diff(ends)
    reading = Reading(ids, ends, lengths, lengths)
    return Job(reading, job.targets.take(rows), 8, 96, layers=2, width=32)


@lru_cache(maxsize=2)
def _encoder(layers: int, width: int, labels: int, path: str) -> Encoder:
    """Build the model once; packing is proven once."""
    model = untrained_roberta(labels, 0, layers, width)
    return wrap_model(NAME, model, placeholder_tokenizer(), EncoderConfig(path=path))


def tinyhat(
    plan_name: str, how: str, job: Job, device: torch.device, folder: Path, profiled: bool = False
) -> dict[str, Any]:
    """Train a few steps with the package's loop.

    Args:
        plan_name: a training plan.
        how: ``compile``, ``padded``, or nothing.
        job: documents and shape.
        device: where.
        folder: for what a run writes.
        profiled: two more steps run under the profiler, and the row has its table.
    """
    path = "padded" if how == "padded" else "packed"
    made = _encoder(job.layers, job.width, job.targets.width, path)
    encoder = replace(made, model=copy.deepcopy(made.model))
    plan = choose_train_plan(plan_name, device)
    if how == "compile":
        plan = replace(plan, compile=True)
    config = TrainConfig(batch_size=job.batch, pack_tokens=job.pack_tokens, learning_rate=2e-5, max_steps=1000)
    trainer = Loop(encoder, Classify(encoder, Material(job.reading, job.targets)), config, plan, Run(folder))
    _reset(device)
    warm = time.perf_counter()
    for _ in range(WARMUP):
        trainer.train_step()
    _wait(device)
    warm = time.perf_counter() - warm
    steps = SLOW.get(plan_name, TIMED)
    flops, tokens, losses = 0.0, 0, []
    begin = time.perf_counter()
    for _ in range(steps):
        lengths = job.reading.lengths[trainer.steps_plan.batch(trainer.progress.step)]
        flops += step_flops(encoder.model, lengths)
        tokens += int(lengths.sum())
        losses.append(trainer.train_step()["loss"])
    _wait(device)
    seconds = time.perf_counter() - begin
    row = _row(seconds, steps, job, flops, plan_name, device, losses[-1]) | {"warmup_seconds": round(warm, 1)}
    return row | ({"profile": profile_steps(trainer.train_step, 2)} if profiled and device.type == "cuda" else {})


class _Timed(TrainerCallback):
    """Takes the time between the end of the warm-up and the last step."""

    def __init__(self, device: torch.device, lengths: IntArray) -> None:
        self.device, self.begin, self.losses = device, 0.0, [0.0]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARMUP:
            _wait(self.device)
            self.begin = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


class _Summed(Trainer):
    """Trainer with this benchmark's loss and a tally of the documents it reads after the warm-up."""

    targets: Targets
    lengths: IntArray
    seen: list[IntArray]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss of a batch whose ``labels`` are row numbers."""
        rows = inputs.pop("labels").cpu().numpy()
        if self.state.global_step >= WARMUP:
            self.seen.append(self.lengths[rows])
        outputs = model(**inputs)
        loss = document_losses(outputs.logits, self.targets.take(rows)).mean()
        return (loss, outputs) if return_outputs else loss


def hf_trainer(job: Job, device: torch.device, folder: Path) -> dict[str, Any]:
    """HF Trainer in bf16 on the same documents and batches: stock SDPA, padded batches, fused AdamW."""
    _forget_accelerate()
    made = _encoder(job.layers, job.width, job.targets.width, "padded")
    model = RobertaForSequenceClassification(made.model.config)
    model.load_state_dict(made.model.state_dict())
    reading = job.reading
    documents = [
        {"input_ids": reading.input_ids[reading.indptr[i] : reading.indptr[i + 1]].tolist(), "labels": i}
        for i in range(min(len(reading), job.batch * (WARMUP + TIMED)))
    ]
    micro = min(64, job.batch)
    timed = _Timed(device, reading.lengths)
    trainer = _Summed(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "hf"), per_device_train_batch_size=micro, max_steps=WARMUP + TIMED,
            gradient_accumulation_steps=job.batch // micro, learning_rate=2e-5, bf16=True, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=device.type == "cpu",
            optim="adamw_torch_fused", dataloader_num_workers=4 if device.type == "cuda" else 0,
            dataloader_pin_memory=device.type == "cuda",
        ),
        train_dataset=documents,
        data_collator=DataCollatorWithPadding(made.tokenizer),
        callbacks=[timed],
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = False  # or it leaves the division by accumulated micro-batches to our mean
    trainer.remove_callback(PrinterCallback)  # stdout is the table's
    trainer.targets, trainer.lengths, trainer.seen = job.targets, reading.lengths, []
    _reset(device)
    trainer.train()
    _wait(device)
    seconds = time.perf_counter() - timed.begin
    _forget_accelerate()
    flops = step_flops(model, np.concatenate(trainer.seen))
    return _row(seconds, TIMED, job, flops, "amp_bf16", device, timed.losses[-1])


def _forget_accelerate() -> None:
    """Let the next arm choose its precision: accelerate keeps one state a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


def _row(
    seconds: float, steps: int, job: Job, flops: float, plan: str, device: torch.device, loss: float
) -> dict[str, Any]:
    peak, _ = peak_flops(choose_train_plan(plan, device), device)
    mfu = flops / seconds / peak if device.type == "cuda" else None
    assert mfu is None or mfu <= 1, f"MFU of {mfu:.2f}: the clock or the count is wrong"
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    return {
        "documents_per_second": steps * job.batch / seconds,
        "step_ms": 1e3 * seconds / steps,
        "mfu": mfu,
        "peak_gb": memory,
        "loss": loss,
    }


def _reset(device: torch.device) -> None:
    gc.collect()  # a model's own functions are bound to it: circles that wait for the collector
    torch.compiler.reset()  # graphs of another arm's dtypes count towards dynamo's limit
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
