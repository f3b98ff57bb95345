"""What cannot work is refused before any time is spent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.tiny.corpus import tiny_dataset
from tests.tiny.models import save_tiny

import tinyhat.train.chosen as chosen
from tinyhat.config import build_config
from tinyhat.errors import UserError
from tinyhat.pipeline import train_dataset
from tinyhat.train.classifier import prepare

WINDOWS = {"reading.strategy": "windows"}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model", "bert")
    return tiny_dataset(tmp_path / "data", "single", train=24, dev=12, test=0)


def config(tmp_path, **changes):
    common = {"encoder.model": str(tmp_path / "model"), "reading.max_tokens": 16, "train.plan": "fp32"}
    return build_config(None, common | changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (WINDOWS | {"reading.stride": 15}, "unread"),
        ({"reading.stride": 9}, "needs windows"),
        ({"train.update": "top", "train.top_layers": 3}, "has 2 layers"),
        ({"train.reinit_layers": 3}, "has 2 layers"),
        ({"train.forgetting": "no.txt"}, "'no.txt' is not a file"),
        ({"train.replay": "no.txt"}, "'no.txt' is not a file"),
        ({"train.replay": __file__}, "needs the masked-LM head of the checkpoint, and .* has none"),
        ({"train.ema": 0.9, "train.plan": "bf16_master"}, "needs fp32 weights"),
    ],
)
def test_it_is_refused_before_anything_is_built(tmp_path, dataset, changes, match):
    with pytest.raises(UserError, match=match):
        prepare(config(tmp_path, **changes), dataset, lambda _: None)


@pytest.mark.parametrize("there", [False, True])
def test_what_is_refused_leaves_the_folder_as_it_was(tmp_path, dataset, there):
    out = tmp_path / "run"
    if there:
        out.mkdir()
    changes = {"train.update": "top", "train.top_layers": 3}
    with pytest.raises(UserError, match="has 2 layers"):
        train_dataset(config(tmp_path, **changes), dataset, out, say=lambda _: None)
    assert list(out.iterdir()) == [] if there else not out.exists()


def test_pairs_in_windows_and_a_missing_package_are_refused_too(tmp_path, dataset, monkeypatch):
    pairs = {name: replace(split, pairs=split.texts) for name, split in dataset.splits.items()}
    with pytest.raises(UserError, match="for single texts"):
        prepare(config(tmp_path, **WINDOWS), replace(dataset, splits=pairs), lambda _: None)

    def missing(wanted_by):
        raise UserError(f"{wanted_by} needs peft")

    monkeypatch.setattr(chosen, "require_peft", missing)
    with pytest.raises(UserError, match="'lora' needs peft"):
        prepare(config(tmp_path, **{"train.update": "lora"}), dataset, lambda _: None)


def test_a_training_too_short_to_unfreeze_all_says_so(tmp_path, dataset):
    said: list[str] = []
    changes = {"train.update": "gradual", "train.epochs": 1, "evaluate.baseline": False, "evaluate.bootstrap": 0}
    train_dataset(config(tmp_path, **changes), dataset, tmp_path / "run", say=said.append)
    assert any("3 of 4 parts never learn" in line for line in said)
