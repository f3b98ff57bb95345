"""An arena: pairs of seeds, its processes and those that fail, what it refuses, and one in a script."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.tiny.corpus import tiny_dataset, tiny_rows, write_tiny
from tests.tiny.models import save_tiny, tiny_tokenizer

import tinyhat.train.classifier as classifier
from tinyhat import arena as arena_module
from tinyhat import arena_arm, arena_table
from tinyhat.arena import ARMS, Budget, Entry, arena_config
from tinyhat.cli import main
from tinyhat.config import build_config, changed
from tinyhat.data.reading import Reader
from tinyhat.errors import UserError
from tinyhat.head.learned_vote import check_vote
from tinyhat.run import read_json, write_json


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def in_this_process(monkeypatch):
    def run(entry, jobs):
        return "failed" if arena_arm.main([str(entry.folder), entry.arm, str(entry.seed)]) else None

    monkeypatch.setattr(arena_module, "_in_process", run)


def test_an_arena_compares_its_arms_and_goes_on(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    model = save_tiny(tmp_path / "m", "bert")
    data = write_tiny(tmp_path / "data", "single", 40, 20, 20)
    changes = {"data.path": str(data), "reading.max_tokens": 16, "train.batch_size": 4, "train.plan": "fp32"}
    config = build_config(None, changes | {"encoder.model": str(model), "evaluate.bootstrap": 20})
    said: list[str] = []
    arguments = (config, tmp_path / "arena", ["head", "windows"], 1, Budget(tokens=600))
    found = arena_config(*arguments, min_tokens=8, say=said.append)
    assert set(found["arms"]) == {"head", "windows"}
    assert found["failed"] == {}
    head, windows = found["arms"]["head"], found["arms"]["windows"]
    assert windows["coverage"] == 1.0 > head["coverage"]
    assert windows["steps"] < head["steps"], "one budget of tokens: reading more means fewer steps"
    assert windows["difference"] == pytest.approx(windows["mean"] - head["mean"])
    assert windows["interval"][0] <= windows["difference"] <= windows["interval"][1]
    assert "| windows |" in (tmp_path / "arena" / "arena.md").read_text()
    assert (tmp_path / "arena" / "arena.svg").exists()
    arena_config(*arguments, min_tokens=8, say=said.append)
    assert "2 of them complete already" in said[-1]
    with pytest.raises(UserError, match="other data or settings"):
        arena_config(config, tmp_path / "arena", ["head"], 1, Budget(tokens=900), say=said.append)
    with pytest.raises(UserError, match="one budget"):
        arena_config(config, tmp_path / "arena", ["head"], 1, Budget(), say=said.append)
    with pytest.raises(UserError, match="is not one of"):
        arena_config(config, tmp_path / "arena", ["heads"], 1, Budget(tokens=1), say=said.append)


def no_processes(monkeypatch):
    monkeypatch.setattr(arena_module, "_in_process", lambda entry, jobs: "not run")


def refused(match, config, folder, arms=("head",), budget=Budget(tokens=9)):  # noqa: B008 - frozen
    with pytest.raises(UserError, match=match):
        arena_config(config, folder, list(arms), 1, budget, say=lambda _: None)


def test_other_documents_are_another_arena(tmp_path, monkeypatch):
    no_processes(monkeypatch)
    data = write_tiny(tmp_path / "data", "single", 40, 20, 20)
    config = build_config(None, {"data.path": str(data)})
    refused("no arm", config, tmp_path / "arena")
    refused("no arm", config, tmp_path / "arena")
    (data / "train.jsonl").write_text((data / "train.jsonl").read_text().replace("law", "act"))
    refused("other data or settings", config, tmp_path / "arena")


def test_what_an_arena_refuses(tmp_path, monkeypatch):
    no_processes(monkeypatch)
    config = build_config(None, {"data.path": str(write_tiny(tmp_path / "data", "single", 40, 20, 20))})
    for minutes in (0.0, -3.0, float("nan"), float("inf")):
        refused("above 0", config, tmp_path / "arena", budget=Budget(seconds=60 * minutes))
    refused("above 0", config, tmp_path / "arena", budget=Budget(tokens=0))
    refused("every arm would be the same", changed(config, {"encoder.model": "linear"}), tmp_path / "arena")
    assert not (tmp_path / "arena").exists()


def test_every_arm_reads_as_it_is_called_whatever_the_recipe_says():
    recipe = {
        "reading.max_tokens": 16, "reading.strategy": "windows", "reading.vote": "attention",
        "reading.learn": "document", "reading.stride": 10, "reading.title_tokens": 2,
    }  # fmt: skip
    config = build_config(None, recipe)
    tokenizer = tiny_tokenizer().backend_tokenizer
    for name, settings in ARMS.items():
        reading = changed(config, settings).reading
        if name not in ("linear", "windows_majority"):
            check_vote(reading)
        assert Reader(tokenizer, reading)
        if not name.startswith("windows"):
            continue
        assert reading.vote == (name.removeprefix("windows_") if "_" in name else "mean")
        assert (reading.stride, reading.title_tokens, reading.learn) == (10, 2, "document")


def test_arms_are_compared_seed_by_seed():
    base = {0: (0.5, np.array([0.4, 0.6])), 2: (0.7, np.array([0.6, 0.8]))}
    other = {1: (0.9, np.array([0.8, 1.0])), 2: (0.75, np.array([0.7, 0.8]))}
    found = arena_table.against(base, other)
    assert found["difference"] == pytest.approx(0.05)
    assert found["compared_seeds"] == 1
    assert arena_table.against({0: base[0]}, other) == {}


def test_a_table_of_arms_that_have_no_seed_in_common(tmp_path, monkeypatch):
    values = {("head", 0): 0.5, ("tail", 1): 0.75, ("middle", 0): np.nan}
    for arm, seed in values:
        folder = Entry(tmp_path, arm, seed).path
        write_json(folder / "arm.json", dict.fromkeys(arena_table.FIGURES, 1.0) | {"documents": {"test": 3}})
        write_json(folder / "metrics.json", {"task": "regression", "split": "test"})

    def known(folder, resamples):
        value = values[folder.parent.name, int(folder.name[-1])]
        return value, np.full(resamples, value)

    monkeypatch.setattr(arena_table, "resampled", known)
    found = arena_table.conclude(tmp_path, ["head", "tail", "middle"], 2, {}, 10)
    assert found["compared_with"] == "head"
    assert "difference" not in found["arms"]["tail"]
    assert "undefined" in found["failed"]["middle"]
    assert read_json(tmp_path / "arena.json")["arms"]["tail"]["mean"] == 0.75
    assert "| tail | 0.750 |  |  |" in (tmp_path / "arena.md").read_text()


def test_a_failing_arm_says_why(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("nothing fits")

    monkeypatch.setattr(arena_arm, "run_arm", broken)
    entry = Entry(tmp_path, "head", 0)
    assert arena_arm.main([str(tmp_path), "head", "0"]) == 1
    assert read_json(entry.failed)["error"].startswith("ValueError: nothing fits")
    assert "Traceback" in capsys.readouterr().err

    def mistaken(*_):
        raise UserError("there is no such model")

    monkeypatch.setattr(arena_arm, "run_arm", mistaken)
    assert arena_arm.main([str(tmp_path), "head", "0"]) == 2
    assert read_json(entry.failed) == {"error": "there is no such model"}
    assert "Traceback" not in capsys.readouterr().err


def test_what_failed_before_is_not_said_again_and_jobs_share_the_cores(tmp_path, monkeypatch):
    entry, called = Entry(tmp_path, "head", 0), []

    def killed(command, **settings):
        called.append(settings["env"].get("OMP_NUM_THREADS"))
        return SimpleNamespace(returncode=-9)

    monkeypatch.setattr(arena_module.subprocess, "run", killed)
    monkeypatch.setattr(arena_module.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write_json(entry.failed, {"error": "an old one"})
    assert "exit code -9" in arena_module._in_process(entry, 1)
    assert "exit code -9" in read_json(entry.failed)["error"]
    arena_module._in_process(entry, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    arena_module._in_process(entry, 3)
    assert called == [None, "2", "5"]


def test_minutes_become_steps_and_the_trial_is_gone_before_the_arm_trains(tmp_path, monkeypatch):
    model = save_tiny(tmp_path / "m", "bert")
    dataset = tiny_dataset(tmp_path / "data", "single", train=24, dev=12, test=0)
    settings = {"encoder.model": str(model), "train.plan": "fp32", "train.batch_size": 4, "reading.max_tokens": 16}
    built, alive = classifier.build_trainer, []

    def watched(*arguments):
        found = built(*arguments)
        alive.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(classifier, "build_trainer", watched)
    said: list[str] = []
    budget = Budget(seconds=60)
    steps = arena_arm.affordable_steps(build_config(None, settings), dataset, budget, tmp_path / "run", said.append)
    assert steps > 60
    assert f"{steps} steps in 60 s" in said[-1]
    assert [trainer() for trainer in alive] == [None]
    assert not list(tmp_path.glob("run*"))


def test_an_arena_at_the_top_level_of_a_script(tmp_path):
    rows = "\n".join(f"{row['text']},{row['label']}" for row in tiny_rows("single", 60))
    (tmp_path / "data.csv").write_text(f"text,label\n{rows}\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import tinyhat\n"
        "print('begins')\n"
        "tinyhat.arena('data.csv', 'arena', ['linear'], seeds=1, minutes=1, settings={'evaluate.bootstrap': 10})\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read_json(Path(tmp_path / "arena" / "arena.json"))["arms"]["linear"]
    assert found["peak_memory_gb"] > 0.05
    assert found["steps"] is None
    log = (tmp_path / "arena" / "arms" / "linear" / "seed_0.log").read_text()
    assert "linear: TF-IDF" in log
    assert "begins" not in log, "the script runs once"


def test_the_command_line(tmp_path, monkeypatch, capsys):
    in_this_process(monkeypatch)
    model, data = save_tiny(tmp_path / "m", "bert"), write_tiny(tmp_path / "data", "multi", 40, 20, 0)
    command = ["arena", str(data), "--out", str(tmp_path / "arena"), "--model", str(model), "--max-tokens", "16"]
    command += ["--arms", "linear,windows", "--seeds", "1", "--jobs", "2", "--set", "train.plan=fp32"]
    with pytest.raises(SystemExit):
        main([*command, "--minutes", "0"])
    assert "a number above 0" in capsys.readouterr().err
    main([*command, "--tokens", "600", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["compared_with"] == "windows"
    assert found["split"] == "dev"
    assert found["metric"] == "micro_f1"
    assert found["arms"]["linear"]["peak_memory_gb"] > 0
    main([*command, "--tokens", "600"])
    assert "| linear |" in capsys.readouterr().out
