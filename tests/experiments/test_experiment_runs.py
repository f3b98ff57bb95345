"""The experiments' commands at tiny size: a grid goes on where it stopped, divergence is on record, mistakes exit 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.tiny.models import save_tiny
from tests.tiny.tokens import LABELS, write_tokens

from tinyhat.data.tokens import load_tokens, tokenizer_hash
from tinyhat.encoder.load import load_tokenizer
from tinyhat.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def start(script, *words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "ignore", str(ROOT / "experiments" / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def runs(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def steps_of(folder, run):
    return [json.loads(line) for line in (folder / "steps" / f"{run['key']}.jsonl").read_text().splitlines()]


def test_classification_both_layouts_resumable(tmp_path):
    save_tiny(tmp_path / "model", "roberta", hidden_dropout_prob=0.0)
    write_tokens(tmp_path / "tokens.xz", tokenizer_hash(load_tokenizer(str(tmp_path / "model"))))
    flags = [
        "--model", tmp_path / "model", "--tokens", tmp_path / "tokens.xz", "--max_tokens", 40, "--max_steps", 12,
        "--eval_steps", 8, "--learning_rate", 1e-3, "--out", tmp_path / "out", "--layout", "both", "--seed", 0,
    ]  # fmt: skip
    assert start("classification/run.py", "--config", "fp32", *flags).returncode == 0
    done = start("classification/run.py", "--config", "fp32,bf16_master,fp16_naive,tf32", "--only-missing", *flags)
    assert done.stderr.count("there already") == 2
    found = {(r["plan"], r["layout"]): r for r in runs(tmp_path / "out")}
    assert len(found) == len(runs(tmp_path / "out")) == 8
    assert found["tf32", "packed"]["status"] == "cannot run"
    assert found["fp16_naive", "packed"]["status"] == "diverged"
    assert found["fp16_naive", "packed"]["diverged_at"] <= 3
    for plan in ("fp32", "bf16_master"):
        record = found[plan, "padded"]
        assert record["status"] == "done"
        assert record["samples_per_second"] > 0
        assert record["timed_steps"] == 6  # of 12, five warm the machine up and one is watched
        assert record["peak_memory_gb"] > 0
        assert record["settings"]["max_steps"] == 12
        assert record["mfu"] is None or 0 < record["mfu"] <= 1
        for key in ("micro_f1", "macro_f1", "precision_at_1", "precision_at_3", "precision_at_5", "tuned_micro_f1"):
            assert 0 <= record["metrics"][key] <= 1
    # without dropout the same batches cost the same, packed or padded
    packed, padded = (
        [step["loss"] for step in steps_of(tmp_path / "out", found["fp32", layout]) if "loss" in step]
        for layout in ("packed", "padded")
    )
    np.testing.assert_allclose(packed, padded, rtol=1e-4)
    assert found["fp32", "packed"]["metrics"]["largest_gap_to_fp32"] < 1e-4
    assert found["bf16_master", "packed"]["metrics"]["largest_gap_to_fp32"] > 1e-4
    assert found["bf16_master", "packed"]["unchanged_share"] > found["fp32", "packed"]["unchanged_share"]
    steps = steps_of(tmp_path / "out", found["fp32", "packed"])
    assert [s["step"] for s in steps if "loss" in s] == list(range(1, 13))
    assert [s["step"] for s in steps if "evaluation" in s] == [8]


def test_language_modeling_from_text_to_record(tmp_path):
    words = ["the", "king", "of", "a", "far", "land", "had", "three", "sons", "and", "no", "daughter", "at", "all"]
    random = np.random.default_rng(0)
    novels = [json.dumps({"id": str(i), "text": " ".join(random.choice(words, 400))}) for i in range(30)]
    (tmp_path / "novels.jsonl").write_text("\n".join(novels))
    prepared = start(
        "language_modeling/prepare_data.py", "--source", tmp_path / "novels.jsonl", "--out", tmp_path / "data",
        "--vocabulary", 300,
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    done = start(
        "language_modeling/run.py", "--config", "fp32,amp_bf16_fp32_head,amp_fp16", "--data", tmp_path / "data",
        "--out", tmp_path / "out", "--layers", 2, "--width", 32, "--heads", 2, "--context", 16, "--micro_batch", 8,
        "--accumulation", 2, "--max_steps", 30, "--learning_rate", 1e-2, "--validation_windows", 16,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {r["plan"]: r for r in runs(tmp_path / "out")}
    assert {r["status"] for r in found.values()} == {"done"}
    for record in found.values():
        assert record["metrics"]["validation_loss"] < record["first_loss"] - 1
        assert record["metrics"]["validation_loss"] == pytest.approx(
            found["fp32"]["metrics"]["validation_loss"], rel=0.02
        )
    assert found["amp_fp16"]["loss_scale"] == 2.0**16
    emulated = {plan: (r["products"], r["samples_per_second"], r["mfu"]) for plan, r in found.items()}
    assert emulated["amp_fp16"] == ("emulated", None, None)
    assert emulated["fp32"][0] == "native"
    assert emulated["fp32"][1] > 0


def test_the_list_of_plans():
    listed = start("classification/run.py", "--list").stdout
    assert "bf16_split_master" in listed
    assert "bf16_naive is bf16_pure" in listed


def test_a_file_of_tokens_is_what_was_written(tmp_path):
    splits = write_tokens(tmp_path / "tokens.xz")
    again = load_tokens(tmp_path / "tokens.xz")
    for name, (reading, targets) in splits.items():
        np.testing.assert_array_equal(again[name][0].input_ids, reading.input_ids)
        np.testing.assert_array_equal(again[name][0].indptr, reading.indptr)
        np.testing.assert_array_equal(again[name][1].values, targets.values)
        np.testing.assert_array_equal(again[name][1].indptr, targets.indptr)
        assert again[name][1].width == LABELS
    (tmp_path / "tokens.xz").write_bytes((tmp_path / "tokens.xz").read_bytes()[:-9])
    with pytest.raises(UserError, match="no file of tokens"):
        load_tokens(tmp_path / "tokens.xz")
    with pytest.raises(UserError, match="does not exist"):
        load_tokens(tmp_path / "other.xz")
