"""`train --find-rate`, `train --forgetting` and `sweep` on the command line."""

from __future__ import annotations

import json

import pytest
from tests.tiny.corpus import write_tiny
from tests.tiny.models import save_tiny

from tinyhat.cli import main


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model", "bert")
    return write_tiny(tmp_path / "data", "single", train=48, dev=24, test=0)


def arguments(tmp_path, data):
    return [str(data), "--model", str(tmp_path / "model"), "--set", "reading.max_tokens=48", "--set", "train.plan=fp32"]


def refused(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_find_rate_needs_no_folder_and_suggests_a_rate(tmp_path, data, capsys):
    main(["train", *arguments(tmp_path, data), "--find-rate", "--batch-size", "8"])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("try --learning-rate ")
    assert 1e-6 < float(last.split()[-1]) < 1


def test_train_without_a_folder_is_one_sentence(tmp_path, data, capsys):
    assert "tinyhat train needs --out RUN" in refused(capsys, ["train", *arguments(tmp_path, data)])


def test_forgetting_is_measured_and_reported(tmp_path, data, capsys):
    sentence = "The court of the market and the state had a rule for the {} ship. Then the union of trade took {} tax."
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentence.format(f"a{i}", f"b{i}") for i in range(60)))
    command = ["train", *arguments(tmp_path, data), "--out", str(tmp_path / "run"), "--max-steps", "4", "--no-baseline"]
    main([*command, "--forgetting", str(text), "--set", "train.update=top", "--set", "train.top_layers=1"])
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())["forgetting"]
    assert [layer["cka"] == pytest.approx(1) for layer in facts["layers"]] == [True, True, False]
    assert "masked_lm_loss" not in facts
    assert "What the encoder forgot" in (tmp_path / "run" / "report.html").read_text()
    main(["tune", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["forgetting"] == facts


def test_sweep_prints_its_trials_best_first(tmp_path, data, capsys):
    command = ["sweep", *arguments(tmp_path, data), "--out", str(tmp_path / "sweep"), "--trials", "2"]
    main([*command, "--set", "train.max_steps=3", "--over", "train.head_rate=1..30:log"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2
    assert float(lines[0].split()[1]) >= float(lines[1].split()[1])
    assert (tmp_path / "sweep" / "best.yaml").exists()
    said = refused(capsys, [*command[:-1], "1", "--over", "train.head_rate=30..1"])
    assert "a range rises from a lower to a higher number" in said
