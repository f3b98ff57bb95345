"""Killed at any moment, resumed, and the same to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.corpus import tiny_dataset, write_tiny
from tests.tiny.models import save_tiny, tiny_model

from tinyhat.config import TrainConfig
from tinyhat.errors import UserError
from tinyhat.run import Run, open_run
from tinyhat.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from tinyhat.train.log import StepLog
from tinyhat.train.optim import build_optimizer

STEPS = 24
SETTINGS = [
    "--max-tokens", "48", "--max-steps", str(STEPS), "--batch-size", "8", "--no-baseline", "--seed", "3",
    "--set", "train.checkpoint_every=5", "--set", "train.evaluate_every=8", "--set", "evaluate.bootstrap=0",
]  # fmt: skip


def train(tmp_path, name, *more, kill_after=None):
    command = [sys.executable, "-m", "tinyhat", "train", str(tmp_path / "data"), "--model", str(tmp_path / "model")]
    command += ["--out", str(tmp_path / name), *SETTINGS, *more]
    environment = os.environ | {"TINYHAT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if kill_after is not None:
        log = Run(tmp_path / name).log
        while process.poll() is None and not (log.exists() and log.read_text().count('"loss"') >= kill_after):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_killed_twice_and_resumed_it_ends_with_the_same_bits(tmp_path):
    write_tiny(tmp_path / "data", "multi")
    save_tiny(tmp_path / "model", "bert")
    code, _, err = train(tmp_path, "whole")
    assert code == 0, err
    assert train(tmp_path, "killed", kill_after=7)[0] == -signal.SIGKILL
    assert train(tmp_path, "killed", "--resume", kill_after=19)[0] == -signal.SIGKILL
    code, _, err = train(tmp_path, "killed", "--resume")
    assert code == 0, err
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert set(whole) == set(killed)
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "killed")]
    pairs = [[(x["step"], x.get("loss"), x.get("evaluation")) for x in log] for log in logs]
    assert pairs[0] == pairs[1]
    same = [json.loads((tmp_path / n / "model" / "decision.json").read_text()) for n in ("whole", "killed")]
    assert same[0] == same[1]
    code, _, err = train(tmp_path, "killed", "--resume", "--learning-rate", "0.5")
    assert code == 2
    assert "train.learning_rate was None, is 0.5" in err
    assert "Traceback" not in err


def test_killed_between_two_unfreezings_it_ends_with_the_same_bits(tmp_path):
    write_tiny(tmp_path / "data", "multi")
    save_tiny(tmp_path / "model", "bert")
    more = [f"train.{key}" for key in ("update=gradual", "unfreeze_every=4", "ema=0.9", "mixout=0.2", "l2_sp=0.1")]
    more = [word for key in more for word in ("--set", key)]
    code, _, err = train(tmp_path, "whole", *more)
    assert code == 0, err
    assert train(tmp_path, "killed", *more, kill_after=7)[0] == -signal.SIGKILL  # checkpoint 5, two parts learn
    code, _, err = train(tmp_path, "killed", *more, "--resume")
    assert code == 0, err
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def state(seed):
    model = tiny_model("bert", "multi", 5, seed=seed)
    optimizer = build_optimizer(model, TrainConfig(), 32)
    loss = sum(p.square().sum() for p in model.parameters())
    loss.backward()
    optimizer.step()
    return model, optimizer


def test_a_checkpoint_restores_weights_and_optimiser(tmp_path):
    model, optimizer = state(0)
    kept = {"0.mean": torch.arange(3.0)}
    save_checkpoint(tmp_path, model, optimizer, Progress(step=7, best_value=0.5, seconds=1.5), kept)
    other, fresh = state(1)
    found = load_checkpoint(tmp_path, other, fresh, pytest.fail)
    assert found is not None
    assert found[0] == Progress(step=7, best_value=0.5, seconds=1.5)
    assert list(found[1]) == ["0.mean"]
    assert torch.equal(found[1]["0.mean"], kept["0.mean"])
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[a][key], fresh.state[b][key]), (name, key)


@pytest.mark.parametrize("damage", ["cut", "flip", "no json", "half json"])
def test_a_torn_checkpoint_is_skipped_with_a_warning(tmp_path, damage):
    model, optimizer = state(0)
    save_checkpoint(tmp_path, model, optimizer, Progress(step=1))
    path = save_checkpoint(tmp_path, model, optimizer, Progress(step=2))
    tensors, facts = path / "state.safetensors", path / "state.json"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "flip":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(bytes(data))
    elif damage == "no json":
        facts.unlink()
    else:
        facts.write_text(facts.read_text()[:20])
    said = []
    found = load_checkpoint(tmp_path, *state(1), said.append)
    assert found is not None
    assert found[0].step == 1
    assert len(said) == 1
    assert "step_00000002 is torn" in said[0]


def test_two_checkpoints_are_kept(tmp_path):
    model, optimizer = state(0)
    for step in range(1, 5):
        save_checkpoint(tmp_path, model, optimizer, Progress(step=step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_no_pickle_is_written(tmp_path):
    model, optimizer = state(0)
    path = save_checkpoint(tmp_path, model, optimizer, Progress(step=1))
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "state.safetensors"]


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    log = StepLog(path, step=2)
    log.write({"step": 3, "loss": 1.5})
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [3.0, 2.0, 1.5]


def test_out_folders_are_not_overwritten(tmp_path):
    config = {"train": {"seed": 0}}
    with pytest.raises(UserError, match="nothing to resume"):
        open_run(tmp_path / "new", config, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and is not a tinyhat run"):
        open_run(tmp_path / "full", config, resume=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "file", config, resume=False)
    run = open_run(tmp_path / "run", config, resume=False)
    run.manifest.write_text(json.dumps({"config": config, "data": {}, "labels": [], "train_counts": []}))
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        open_run(tmp_path / "run", config, resume=False)
    with pytest.raises(UserError, match=r"train.seed was 0, is 1"):
        open_run(tmp_path / "run", {"train": {"seed": 1}}, resume=True)
    assert open_run(tmp_path / "run", config, resume=True) == run
    assert open_run(tmp_path / "run", config | {"tune": {"rule": "global"}}, resume=True) == run
    run.manifest.write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        open_run(tmp_path / "run", config, resume=True)


def test_changed_documents_are_refused(tmp_path):
    first = tiny_dataset(tmp_path / "data", "multi")
    assert first.sha256 != tiny_dataset(tmp_path / "other", "multi", train=95).sha256
