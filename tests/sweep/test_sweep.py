"""A sweep finds the better setting, goes on after a stop as if there had been none, and writes a recipe that works."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml
from tests.tiny.corpus import write_tiny
from tests.tiny.models import save_tiny

import tinyhat
import tinyhat.sweep as module
from tinyhat.config import Config, build_config, changed
from tinyhat.errors import UserError
from tinyhat.run import read_json
from tinyhat.sweep import Axis, read_axis, recipe_of

optuna = pytest.importorskip("optuna")
OVER = ["train.learning_rate=1e-7..1e-2:log", "train.update=all,head"]


def arguments(tmp_path, **changes):
    if not (tmp_path / "data").exists():
        write_tiny(tmp_path / "data", "single", train=48, dev=24, test=0)
        save_tiny(tmp_path / "model", "bert")
    settings = {
        "encoder.model": str(tmp_path / "model"), "reading.max_tokens": 48, "train.plan": "fp32", "train.max_steps": 12,
        "train.batch_size": 8, "train.evaluate_every": 4,
    }  # fmt: skip
    return tmp_path / "data", settings | changes


def search(tmp_path, name, trials, over=OVER, **changes):
    data, settings = arguments(tmp_path, **changes)
    return tinyhat.sweep(data, tmp_path / name, trials, over, settings, say=lambda _: None)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("train.learning_rate=1e-5..1e-3:log", Axis("train.learning_rate", (), 1e-5, 1e-3, True)),
        ("train.epochs=1..5", Axis("train.epochs", (), 1, 5)),
        ("train.layer_decay=0.7..1", Axis("train.layer_decay", (), 0.7, 1.0)),
        ("train.head_rate=1..30:log", Axis("train.head_rate", (), 1.0, 30.0, True)),
        ("train.update=all, lora", Axis("train.update", ("all", "lora"))),
        ("train.class_weights=true,false", Axis("train.class_weights", (True, False))),
    ],
)
def test_axes(text, axis):
    found = read_axis(text)
    assert found == axis
    assert type(found.low) is type(axis.low)


@pytest.mark.parametrize(
    "text",
    [
        "train.epochs",
        "epochs=1..2",
        "train.epochs=3",
        "train.epochs=5..1",
        "train.learning_rate=0..1:log",
        "train.update=[all,lora]",
        "data.limit=10,20",
        "tune.rule=global,argmax",
        "pretrain.size=xs,small",
    ],
)
def test_what_is_no_axis_is_one_sentence(text):
    with pytest.raises(UserError, match="--over"):
        read_axis(text)


def test_a_stopped_sweep_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = search(tmp_path, "whole", 6)
    search(tmp_path, "stopped", 2)

    original, calls, seen = module.train_classifier, [], []

    def killed(*arguments):
        calls.append(1)
        watch = arguments[-1]

        def once(value):
            watch(value)
            seen.append(value)
            if len(seen) == 2:  # the first evaluation has left a checkpoint
                raise KeyboardInterrupt

        return original(*arguments[:-1], once)

    monkeypatch.setattr(module, "train_classifier", killed)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, "stopped", 6)
    monkeypatch.setattr(module, "train_classifier", original)
    assert calls == [1]
    folder = tmp_path / "stopped" / "trials" / "002"
    assert [p.name for p in (folder / "checkpoints").glob("step_*")] == ["step_00000004"]
    again = search(tmp_path, "stopped", 6)
    assert [(r["state"], r["value"], r["parameters"]) for r in again["trials"]] == [
        (r["state"], r["value"], r["parameters"]) for r in whole["trials"]
    ]
    assert again["best"] == whole["best"]
    assert sorted(p.name for p in folder.iterdir()) == ["log.jsonl", "values.json"]
    with pytest.raises(UserError, match="holds a sweep of other data, settings or axes"):
        search(tmp_path, "stopped", 6, ["train.update=all,head"])


def test_the_best_is_a_recipe_that_trains_to_the_same_value(tmp_path):
    found = search(tmp_path, "sweep", 3)
    values = [row["value"] for row in found["trials"] if row["state"] == "complete"]
    assert found["best"]["value"] == max(values)
    recipe = tmp_path / "sweep" / "best.yaml"
    tree = yaml.safe_load(recipe.read_text())
    assert tree["train"]["learning_rate"] == found["best"]["parameters"]["train.learning_rate"]
    assert "data" not in tree
    config = build_config(recipe, {"data.path": "x"})
    assert config == changed(
        build_config(None, arguments(tmp_path)[1] | {"data.path": "x"}), found["best"]["parameters"]
    )
    run = tinyhat.train(arguments(tmp_path)[0], tmp_path / "run", {"evaluate.baseline": False}, recipe, say=_quiet)
    best = [line["evaluation"]["value"] for line in _lines(run) if "evaluation" in line]
    assert max(best) == found["best"]["value"]
    assert read_json(run.metrics)["split"] == "dev"


def _quiet(_):
    pass


def _lines(run):
    return [json.loads(line) for line in run.log.read_text().splitlines()]


def test_hopeless_trials_are_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STARTUP", 2)
    found = search(
        tmp_path, "sweep", 8, ["train.learning_rate=1e-9,3e-3"], **{"train.max_steps": 60, "train.evaluate_every": 20}
    )
    states = {(row["parameters"]["train.learning_rate"], row["state"]) for row in found["trials"]}
    assert (1e-9, "pruned") in states
    assert found["best"]["parameters"] == {"train.learning_rate": 3e-3}


def test_an_unknown_path_is_found_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"no key 'learning_rat' .*did you mean 'learning_rate'"):
        search(tmp_path, "sweep", 2, ["train.learning_rat=1e-5..1e-3"])
    with pytest.raises(UserError, match=r"train.update = 'most'"):
        search(tmp_path, "sweep", 2, ["train.update=all,most"])
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_in_which_everything_breaks_says_why(tmp_path):
    with pytest.raises(UserError, match=r"no trial came to its end: .*2 layers"):
        search(tmp_path, "sweep", 2, ["train.reinit_layers=3,4"])


def test_a_recipe_holds_what_differs():
    config = build_config(None, {"data.path": "p", "data.text": ("a",), "train.epochs": 2})
    assert recipe_of(config) == {"data": {"text": ["a"]}, "train": {"epochs": 2.0}}
    assert recipe_of(Config()) == {}


@pytest.mark.parametrize("problem", ["memory", "not a number"])
def test_a_trial_that_breaks_is_one_trial_less_and_does_not_run_again(tmp_path, monkeypatch, problem):
    original, calls = module.train_classifier, []

    def breaks(*arguments):
        calls.append(1)
        if len(calls) > 1:
            return original(*arguments)
        if problem == "memory":
            raise RuntimeError("out of memory")
        return SimpleNamespace(outcome=SimpleNamespace(seconds=1.0, best_value=float("nan")))

    monkeypatch.setattr(module, "train_classifier", breaks)
    for _ in range(2):
        found = search(tmp_path, "sweep", 2)
    assert len(calls) == 2
    assert [row["state"] for row in found["trials"]] == ["fail", "complete"]
