"""The verb: text in, a checkpoint out that train takes; killed and resumed it ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.corpus import FILLER, TOPICS, write_tiny
from transformers import AutoModelForMaskedLM, AutoTokenizer

import tinyhat
from tinyhat.encoder import masked_lm
from tinyhat.errors import UserError

SETTINGS = {
    "pretrain.size": "xs", "pretrain.max_steps": 12, "pretrain.batch_size": 6, "pretrain.vocabulary": 120,
    "pretrain.tokenizer": "bnc", "pretrain.lengths": [16, 32], "pretrain.switches": [0.5], "pretrain.seed": 3,
    "pretrain.checkpoint_every": 3, "pretrain.evaluate_every": 4, "pretrain.plan": "fp32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Let xs be smaller still, and keep caches apart."""
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(masked_lm.SIZES, "xs", (48, 64, 3))


@pytest.fixture
def corpus(tmp_path):
    random = np.random.default_rng(0)
    words = TOPICS + FILLER
    path = tmp_path / "text.jsonl"
    with path.open("w") as file:
        for _ in range(12):
            text = "\n".join(" ".join(random.choice(words, 20)) for _ in range(8))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def pretrain(corpus, out, resume=False, say=lambda _: None, **changes):
    return tinyhat.pretrain(corpus, out, SETTINGS | changes, resume=resume, say=say)


def command(corpus, out, *more):
    flags = [x for key, value in SETTINGS.items() for x in ("--set", f"{key}={json.dumps(value)}")]
    code = (
        "import sys; from tinyhat.encoder import masked_lm; masked_lm.SIZES['xs'] = (48, 64, 3);"
        "from tinyhat.cli import main; main(sys.argv[1:])"
    )
    return [sys.executable, "-c", code, "pretrain", str(corpus), "--out", str(out), *flags, *more]


def kill(corpus, out, after, *more):
    """Run the command and kill it once its log has `after` steps."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(corpus, out, *more), env=environment, stderr=subprocess.PIPE, text=True)
    log = out / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count('"loss"') >= after):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err


def test_killed_in_either_stage_and_resumed_it_ends_with_the_same_bits(tmp_path, corpus):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pretrain(corpus, tmp_path / "whole")
    kill(corpus, tmp_path / "killed", 4)
    kill(corpus, tmp_path / "killed", 10, "--resume")
    done = subprocess.run(
        command(corpus, tmp_path / "killed", "--resume"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert set(whole) == set(killed)
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "killed")]
    pairs = [[(x["step"], x.get("loss"), x.get("evaluation")) for x in log] for log in logs]
    assert pairs[0] == pairs[1]
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "killed")]
    assert metrics[0]["history"] == metrics[1]["history"]
    assert [step for step, _ in metrics[0]["history"]] == [4, 8, 12]


def test_what_it_makes_loads_in_transformers_and_is_fine_tuned(tmp_path, corpus):
    said = []
    run = pretrain(corpus, tmp_path / "run", say=said.append)
    metrics = json.loads(run.metrics.read_text())
    assert metrics["masked_lm_loss"] == min(loss for _, loss in metrics["history"])
    assert 2 < metrics["unigram_entropy"] < np.log(len(TOPICS + FILLER)) + 0.1
    assert any("unigram entropy" in line and "masked-LM loss" in line for line in said)
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 13))
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert [tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id] == [0, 1, 2]
    assert [tokenizer.pad_token_id, tokenizer.mask_token_id] == [3, 4]
    model = AutoModelForMaskedLM.from_pretrained(run.model)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == 3
    ids = tokenizer("fish [MASK] milk", return_tensors="pt")
    assert 4 in ids["input_ids"][0].tolist()
    assert model(**ids).logits.shape[-1] == len(tokenizer)
    data = write_tiny(tmp_path / "data", "single")
    settings = {
        "encoder.model": str(run.path), "reading.max_tokens": 48, "train.max_steps": 2, "evaluate.baseline": False,
        "evaluate.bootstrap": 0, "train.plan": "fp32",
    }  # fmt: skip
    tuned = tinyhat.train(data, tmp_path / "tuned", settings, say=said.append)
    before, after = (load_file(r.model / "model.safetensors") for r in (run, tuned))
    name = "model.embedding.word_embedding.weight"
    torch.testing.assert_close(before[name], after[name], atol=2e-3, rtol=0)  # it began from there: two small steps


def test_no_steps_write_the_weights_as_they_begin(tmp_path, corpus):
    run = pretrain(corpus, tmp_path / "random", **{"pretrain.max_steps": 0})
    other = pretrain(
        corpus, tmp_path / "same", **{"pretrain.max_steps": 0, "pretrain.tokenizer": str(tmp_path / "random")}
    )
    weights = [load_file(r.model / "model.safetensors") for r in (run, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    files = [(r.model / "tokenizer.json").read_bytes() for r in (run, other)]
    assert files[0] == files[1]
    assert json.loads(run.metrics.read_text())["history"] == []


@pytest.mark.parametrize("tokenizer", ["babylm", "bnc"])
@pytest.mark.parametrize("strategy", ["subword", "whole_word"])
def test_every_flavour_and_strategy_runs(tmp_path, corpus, tokenizer, strategy):
    changes = {"pretrain.tokenizer": tokenizer, "pretrain.masking": strategy, "pretrain.max_steps": 2}
    changes |= {"pretrain.vocabulary": 300, "pretrain.optimizer": "adamw"}
    metrics = json.loads(pretrain(corpus, tmp_path / "run", **changes).metrics.read_text())
    assert metrics["steps"] == 2


def refused(corpus, out, sentence, resume=False, **changes):
    with pytest.raises(UserError, match=sentence) as caught:
        pretrain(corpus, out, resume, **changes)
    assert "\n" not in str(caught.value)


def test_bad_text(tmp_path):
    for name, content, sentence in (
        ("empty.txt", "", "holds no text"),
        ("blank.txt", " \n \n", "holds no text"),
        ("empty.jsonl", "", "holds no text"),
        ("short.txt", "x", "too little text"),
        ("torn.jsonl", '{"text": "fish milk"}\n{"text', "line 2: it is not valid JSON"),
        ("none.jsonl", '{"words": "fish"}\n', "no column that is plainly the text column .*--text"),
        ("picture.png", "x", "has no format"),
    ):
        (tmp_path / name).write_text(content)
        refused(tmp_path / name, tmp_path / "run", sentence)
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", tmp_path / "run", "no file with text")
    refused(tmp_path / "nowhere", tmp_path / "run", "does not exist")
    assert not (tmp_path / "run").exists()


def test_bad_settings(tmp_path, corpus):
    refused(corpus, tmp_path / "run", "switches", **{"pretrain.switches": []})
    refused(corpus, tmp_path / "run", "must rise", **{"pretrain.lengths": [32, 16]})
    refused(corpus, tmp_path / "run", "neither bnc, babylm nor a folder", **{"pretrain.tokenizer": "bert"})
    assert not (tmp_path / "run").exists()  # free for another try


def test_a_tokenizer_that_lacks_a_mask_is_refused(tmp_path, corpus):
    run = pretrain(corpus, tmp_path / "run", **{"pretrain.max_steps": 0})
    folder = run.path / "tokenizer"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(corpus, tmp_path / "other", "lacks a mask token", **{"pretrain.tokenizer": str(folder)})


def test_a_tokenizer_whose_ids_do_not_fit_the_model_is_refused(tmp_path, corpus):
    run = pretrain(corpus, tmp_path / "run", **{"pretrain.max_steps": 0})
    file = run.path / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] = 5000
    file.write_text(json.dumps(content))
    refused(corpus, tmp_path / "other", "and the id 5000", **{"pretrain.tokenizer": str(file.parent)})
    # and a model whose tokenizer knows more than the model
    (run.model / "tokenizer.json").write_text(json.dumps(content))
    data = write_tiny(tmp_path / "data", "single")
    with pytest.raises(UserError, match="tokenizer has 5001 tokens"):
        tinyhat.train(data, tmp_path / "tuned", {"encoder.model": str(run.path)}, say=lambda _: None)


def test_resume_refuses_what_is_not_this_run(tmp_path, corpus):
    refused(corpus, tmp_path / "new", "nothing to resume", resume=True)
    run = pretrain(corpus, tmp_path / "run", **{"pretrain.max_steps": 2})
    refused(corpus, run.path, "already holds a run")
    two = {"pretrain.max_steps": 2}
    refused(
        corpus, run.path, "pretrain.masking was 'span', is 'subword'", True, **two, **{"pretrain.masking": "subword"}
    )
    other = tmp_path / "other.jsonl"
    other.write_text(corpus.read_text().replace("fish", "bird"))
    corpus.rename(tmp_path / "kept.jsonl")
    other.rename(corpus)
    refused(corpus, run.path, "text of .* has changed", True, **two)
    (tmp_path / "kept.jsonl").rename(corpus)
    tokenizer = run.path / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("fish", "bird"))
    refused(corpus, run.path, "tokenizer.json has changed", True, **two)
    manifest = json.loads(run.manifest.read_text())
    run.manifest.write_text(json.dumps(manifest | {"task": "multi"}))
    refused(corpus, run.path, "is a run of 'tinyhat train'", True, **two)
