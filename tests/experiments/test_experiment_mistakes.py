"""What a user may get wrong in the experiments' commands is one sentence and exit code 2, before anything runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.tiny.models import save_tiny
from tests.tiny.tokens import write_tokens

from tinyhat.data.tokens import load_tokens, tokenizer_hash
from tinyhat.encoder.load import load_tokenizer
from tinyhat.encoder.untrained import NAME as UNTRAINED
from tinyhat.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a file of its tokenizer's tokens, and windows for the language model."""
    folder = tmp_path_factory.mktemp("experiments")
    save_tiny(folder / "model", "roberta")
    write_tokens(folder / "tokens.xz", tokenizer_hash(load_tokenizer(str(folder / "model"))))
    windows(folder / "windows")
    return folder


def windows(folder, vocabulary=300, dtype=np.uint16):
    folder.mkdir()
    for name in ("train", "validation"):
        np.save(folder / f"{name}.npy", (np.arange(400) % 300).astype(dtype))
    (folder / "meta.json").write_text(json.dumps({"vocabulary": vocabulary}))
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--max_steps 0", "--max_steps 0 is below 1"),
        ("--max_tokens 4", "max_tokens"),
        ("--limit 0", "--limit 0"),
        ("--dev_limit 0", "--dev_limit 0"),
        ("--micro_batch 0", "--micro_batch 0"),
        ("--watch 0", "--watch 0"),
        ("--eval_steps 0", "--eval_steps 0"),
        ("--seeds 0", "--seeds 0"),
        ("--seed -1", "--seed -1"),
        ("--pack_tokens 3", "pack_tokens = 3"),
        ("--learning_rate 0", "learning_rate = 0.0"),
        ("--grad_clip nan", "grad_clip = nan"),
        ("--config ,", "--config names no plan"),
        ("--config fp33", "did you mean 'fp32'"),
        ("--out {0}/tokens.xz", "cannot be a folder"),
    ],
)
def test_flags_of_the_classification_experiment(folder, tmp_path, mistake, flags, said):
    base = [
        "--model", folder / "model", "--tokens", folder / "tokens.xz", "--max_tokens", 40, "--out", tmp_path / "out",
        "--config", "fp32",
    ]  # fmt: skip
    assert said in mistake("classification", *base, *flags.format(folder).split(" "))
    assert not (tmp_path / "out" / "runs.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--context 0", "--context 0"),
        ("--width 100 --heads 3", "--width 100 is no multiple of --heads 3"),
        ("--layers 0", "--layers 0"),
        ("--validation_windows 0", "--validation_windows 0"),
        ("--seeds 0", "--seeds 0"),
    ],
)
def test_flags_of_the_language_modeling_experiment(folder, tmp_path, mistake, flags, said):
    base = ["--data", folder / "windows", "--context", 16, "--out", tmp_path / "out", "--config", "fp32"]
    assert said in mistake("language_modeling", *base, *flags.split(" "))


def test_data_that_is_not_there(tmp_path, mistake):
    flags = ["--config", "fp32", "--model", "minilm", "--out", tmp_path / "out"]
    assert "prepare_data.py" in mistake("classification", *flags, "--data", tmp_path / "none")
    assert "does not exist" in mistake("classification", *flags, "--model", UNTRAINED, "--tokens", tmp_path / "none.xz")
    assert "prepare_data.py" in mistake("language_modeling", "--data", tmp_path / "none", "--out", tmp_path / "out")


def test_a_file_of_another_tokenizers_ids_is_refused(folder, tmp_path, mistake):
    base = ["--model", folder / "model", "--out", tmp_path / "out", "--config", "fp32", "--max_tokens", 40]
    write_tokens(tmp_path / "other.xz", "of another")
    assert "another tokenizer" in mistake("classification", *base, "--tokens", tmp_path / "other.xz")
    # the tokenizer knows more than the model
    write_tokens(tmp_path / "high.xz", tokenizer_hash(load_tokenizer(str(folder / "model"))), highest=999)
    assert "has token 999 and" in mistake("classification", *base, "--tokens", tmp_path / "high.xz")
    with pytest.raises(UserError, match="another tokenizer"):
        load_tokens(tmp_path / "other.xz", "mine")
    assert load_tokens(tmp_path / "other.xz").keys() == {"train", "dev"}


def test_damaged_windows_are_refused(tmp_path, mistake):
    cut = windows(tmp_path / "cut")
    (cut / "train.npy").write_bytes((cut / "train.npy").read_bytes()[:40])
    meta = windows(tmp_path / "meta")
    (meta / "meta.json").write_text("{")
    key = windows(tmp_path / "key")
    (key / "meta.json").write_text("{}")
    for damaged in (cut, meta, key):
        assert "is damaged" in mistake("language_modeling", "--data", damaged, "--context", 16)
    small = windows(tmp_path / "small", vocabulary=100)
    assert "has token 299 and a vocabulary of 100" in mistake("language_modeling", "--data", small, "--context", 16)
    floats = windows(tmp_path / "floats", dtype=np.float32)
    assert "16 bits" in mistake("language_modeling", "--data", floats, "--context", 16)


def test_what_prepare_data_cannot_read_is_a_sentence(tmp_path, mistake):
    (tmp_path / "table.jsonl").write_text('{"a": 1, "b": 2}\n')
    flags = ["--out", tmp_path / "out"]
    said = mistake("language_modeling", "--source", tmp_path / "table.jsonl", *flags, script="prepare_data")
    assert "table.jsonl" in said
    assert "--limit 0" in mistake("language_modeling", "--limit", 0, *flags, script="prepare_data")
    assert "--vocabulary 10" in mistake("language_modeling", "--vocabulary", 10, *flags, script="prepare_data")
    file = tmp_path / "table.jsonl"
    for task in ("language_modeling", "classification"):
        assert "cannot be a folder" in mistake(task, "--out", file, "--source", file, script="prepare_data")


def test_a_folder_of_txt_files_is_a_document_each(tmp_path, load_script):
    (tmp_path / "novels").mkdir()
    for i in range(10):
        (tmp_path / "novels" / f"{i}.txt").write_text(f"a line of novel {i}\n\nand another one\n" * 20)
    load_script("language_modeling", "prepare_data").prepare(tmp_path / "novels", tmp_path / "out", 300, None, None)
    ids = [np.load(tmp_path / "out" / f"{name}.npy") for name in ("train", "validation")]
    assert [int((part == 0).sum()) for part in ids] == [9, 1]  # each novel begins with the end of the one before it


def test_random_weights_are_those_of_the_seed_in_both_layouts(load_script, monkeypatch):
    model = load_script("classification", "model")
    monkeypatch.setattr(model, "SHAPE", (2, 64))

    def weights(seed, layout, head="note"):
        built = model.build(model.UNTRAINED, ("a", "b", "c"), 40, seed, head, layout).model
        return dict(built.state_dict())

    for head in ("note", "stock"):
        packed, padded, other = weights(0, "packed", head), weights(0, "padded", head), weights(1, "packed", head)
        assert all(torch.equal(packed[name], padded[name]) for name in packed)
        matrices = [n for n, w in packed.items() if w.ndim == 2 and w.std() > 0]
        assert any(".layer.1." in n for n in matrices)
        assert any("classifier" in n for n in matrices)
        assert not any(torch.equal(packed[n], other[n]) for n in matrices)


@pytest.mark.parametrize("given", ["--tokens", "--data"])
def test_an_unreachable_hub_names_what_can_be_had(folder, tmp_path, mistake, given):
    where = folder / "tokens.xz"
    if given == "--data":
        where = tmp_path / "laws"
        for split in ("train", "dev"):
            (where / "dataset" / split).mkdir(parents=True)
            text = {"header": "A law", "recitals": "", "main_body": ["Article"], "attachments": ""}
            for i in "12":
                law = text | {"celex_id": f"{split}{i}", "concepts": [i]}
                (where / "dataset" / split / f"{i}.json").write_text(json.dumps(law))
    said = mistake("classification", given, where, "--model", "nobody/nothing", "--out", tmp_path / "out")
    assert "minilm" in said
    assert f"--model {UNTRAINED}" in said
