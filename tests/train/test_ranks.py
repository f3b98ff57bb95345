"""Two ranks under DDP take the same steps as one process: packs are shared out, the loss is global."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.corpus import write_tiny
from tests.tiny.models import save_tiny, tiny_config
from transformers import AutoModelForMaskedLM

WORKER = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from tinyhat.config import DataConfig, EncoderConfig, ReadingConfig, TrainConfig
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader
from tinyhat.encoder.load import backend_tokenizer, load_encoder
from tinyhat.encoder.precision import choose_plan
from tinyhat.run import Run
from tinyhat.train.chosen import build_strategies
from tinyhat.train.loop import Trainer
from tinyhat.train.objective import Classify, Material

folder, name = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dataset = read_dataset(DataConfig(path=str(folder / "data")), 0)
config = EncoderConfig(model=str(folder / "model"), hidden_dropout=0.0)
encoder = load_encoder(config.model, dataset.task, dataset.labels.names, config, 48, 0)
reading = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=48)).read(dataset.splits["train"].texts)
# 7 documents a step and little packs: ranks get unequal numbers of documents and of packs
settings = TrainConfig(batch_size=7, pack_tokens=60, learning_rate=1e-3, max_steps=5, plan="fp32",
                       **json.loads(sys.argv[3]))
run = Run(folder / name)
run.path.mkdir(exist_ok=True)
plan = choose_plan("fp32", torch.device("cpu"))
strategies = build_strategies(settings, encoder, 5, folder / "adapter", plan, torch.device("cpu"))
trainer = Trainer(encoder, Classify(encoder, Material(reading, dataset.splits["train"].targets)), settings,
                  plan, run, None, strategies)
losses = [trainer.train_step()["loss"] for _ in range(5)]
if trainer.accelerator.is_main_process:
    weights = {n: p.detach() for n, p in encoder.model.named_parameters()}
    save_file(weights | {"losses": torch.tensor(losses)}, folder / f"{name}.safetensors")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


def start(tmp_path, name, settings, rank=None, port=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if rank is not None:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", WORKER, str(tmp_path), name, json.dumps(settings)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


STRATEGIES = {"update": "gradual", "unfreeze_every": 2, "mixout": 0.3, "l2_sp": 0.1, "ema": 0.9, "replay": "text.txt"}


@pytest.mark.parametrize("settings", [{}, STRATEGIES], ids=["plain", "strategies"])
def test_two_ranks_equal_one(tmp_path, settings):
    write_tiny(tmp_path / "data", "multi", train=30, dev=10, test=0)
    save_tiny(tmp_path / "model", "bert")
    if settings:
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(tiny_config("bert")).save_pretrained(tmp_path / "model")
        text = tmp_path / "text.txt"
        text.write_text("\n".join(f"law court market fish {i} tax trade milk ship union" for i in range(200)))
        settings = settings | {"replay": str(text), "replay_tokens": 200}
    port = free_port()
    runs = [("one",), *(("two", rank, port) for rank in range(2))]
    processes = [start(tmp_path, name, settings, *more) for name, *more in runs]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(outputs)
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two.pop("losses"), one.pop("losses"), rtol=2e-4 if settings else 1e-4, atol=0)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-3, msg=name)


def command_line(tmp_path, name, *flags, launcher=()):
    arguments = [
        "-m", "tinyhat", "train", str(tmp_path / "data"), "--out", str(tmp_path / name), "--max-steps", "6",
        "--batch-size", "8", "--model", str(tmp_path / "model"), "--max-tokens", "48", "--no-baseline",
        "--set", "train.plan=fp32", "--set", "train.evaluate_every=3", "--set", "encoder.hidden_dropout=0",
        "--set", "train.pack_tokens=64", *flags,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TINYHAT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, *launcher, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_torchrun_trains_one_run_and_refuses_to_resume_it_alone(tmp_path):
    write_tiny(tmp_path / "data", "multi", train=30, dev=10, test=6)
    save_tiny(tmp_path / "model", "bert")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    for name, launcher in (("one", ()), ("two", torchrun)):
        done = command_line(tmp_path, name, launcher=launcher)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("micro_f1") == 1, "rank 0 alone reports"
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-3, msg=name)
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1])
    alone = command_line(tmp_path, "two", "--resume")
    assert alone.returncode == 2
    assert "began with 2 processes" in alone.stderr
