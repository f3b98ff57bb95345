"""The command line as people use it: the verbs in a row, and the mistakes everybody makes."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from tests.tiny.corpus import tiny_rows, write_tiny
from tests.tiny.models import save_tiny

import tinyhat
from tinyhat.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    write_tiny(path / "data", "multi")
    write_tiny(path / "single", "single")
    save_tiny(path / "model", "bert")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


def tinyhat_command(capsys, *words):
    """Run one command line; return exit code, stdout, stderr."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.fixture(scope="module")
def run(folder):
    settings = {
        "encoder.model": str(folder / "model"), "reading.max_tokens": 40, "train.max_steps": 60, "train.batch_size": 8,
        "train.learning_rate": 3e-3, "evaluate.bootstrap": 50, "encoder.hidden_dropout": 0.0, "train.plan": "fp32",
    }  # fmt: skip
    return tinyhat.train(folder / "data", folder / "run", settings, say=lambda _: None).path


def test_a_run_folder_holds_what_the_docs_say(run):
    names = {p.name for p in run.iterdir()}
    expected = {"model", "metrics.json", "log.jsonl", "manifest.json", "scores", "report.html", "checkpoints"}
    assert expected <= names
    model = {p.name for p in (run / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "decision.json", "README.md"} <= model
    metrics = json.loads((run / "metrics.json").read_text())
    for key in ("micro_f1", "macro_f1", "precision_at_1", "precision_at_5", "rp_at_5", "samples_per_second"):
        assert isinstance(metrics[key], float), key
    assert metrics["split"] == "test"
    assert set(metrics["intervals"]) >= {"micro_f1"}
    assert metrics["baseline"]["micro_f1"] > 0.9, "the labels are words of the text"
    assert metrics["reading"]["tokens_read"] <= metrics["reading"]["tokens_total"]
    assert not [p for p in run.rglob("*") if p.suffix in {".pkl", ".pt", ".bin", ".tmp"} or "tmp" in p.suffix]


def test_evaluate_prints_a_table_or_json(run, capsys):
    code, out, _ = tinyhat_command(capsys, "evaluate", run)
    assert code == 0
    assert "micro_f1" in out
    code, out, _ = tinyhat_command(capsys, "evaluate", run, "--split", "dev", "--json")
    dev = json.loads(out)
    assert dev["split"] == "dev"
    assert dev["micro_f1"] == dev["tuning"]["micro_f1"], "the dev figure is the cross-fitted one"


def test_evaluate_on_a_file_equals_the_saved_scores(run, folder, capsys):
    _, out, _ = tinyhat_command(capsys, "evaluate", run, "--json")
    _, again, _ = tinyhat_command(capsys, "evaluate", run, "--data", folder / "data" / "test.jsonl", "--json")
    saved, fresh = json.loads(out), json.loads(again)
    for key in ("micro_f1", "macro_f1", "precision_at_1", "ndcg_at_5", "mrr"):
        assert fresh[key] == pytest.approx(saved[key], abs=1e-6), key
    only_test = run.parent / "only_test"  # a folder to measure on needs no train file
    only_test.mkdir(exist_ok=True)
    (only_test / "test.jsonl").write_bytes((folder / "data" / "test.jsonl").read_bytes())
    _, again, _ = tinyhat_command(capsys, "evaluate", run, "--data", only_test, "--json")
    assert json.loads(again)["micro_f1"] == pytest.approx(saved["micro_f1"], abs=1e-6)


def test_tune_changes_the_rule_and_not_the_weights(run, capsys):
    weights = (run / "model" / "model.safetensors").read_bytes()
    code, out, _ = tinyhat_command(capsys, "tune", run, "--rule", "top-k", "--set", "tune.top_k=2")
    assert code == 0, out
    rule = json.loads((run / "model" / "decision.json").read_text())["rule"]
    assert (rule["kind"], rule["k"]) == ("top_k", 2)
    _, out, _ = tinyhat_command(capsys, "predict", run, run.parent / "data" / "test.jsonl")
    assert all(len(json.loads(line)["labels"]) == 2 for line in out.splitlines())
    assert "<p dir=" in (run / "report.html").read_text(), "the report keeps its example texts"
    code, _, err = tinyhat_command(capsys, "tune", run, "--rule", "top-k", "--set", "tune.top_k=5")
    assert code == 2
    assert "decides every label" in err
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["descriptors"] = {manifest["labels"][0]: "a readable name"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    code, _, _ = tinyhat_command(capsys, "tune", run, "--rule", "thresholds")
    assert code == 0
    assert f"a readable name ({manifest['labels'][0]})" in (run / "report.html").read_text()
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    thresholds = json.loads((run / "model" / "config.json").read_text())["thresholds"]
    assert len(thresholds) == 5
    assert all(0 < t < 1 for t in thresholds)


def test_predict_streams_json_lines_in_order(run, folder, tmp_path, capsys):
    rows = tiny_rows("multi", 30, seed=9)
    lines = [json.dumps({"id": row["id"], "text": row["text"]}) for row in rows]
    lines[3:3] = ['{"id": "bad", "text": ""}', "{half a line"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    code, out, err = tinyhat_command(capsys, "predict", run, tmp_path / "in.jsonl")
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [r["id"] for r in results[:4]] == ["d0", "d1", "d2", "bad"]
    assert "error" in results[3]
    assert "error" in results[4]
    assert "2 of 32 rows" in err
    good = [r for r in results if "error" not in r]
    assert [r["id"] for r in good] == [row["id"] for row in rows]
    for result in good:
        assert list(result["scores"]) == result["labels"], "the decided ones, best first"
        assert list(result["scores"].values()) == sorted(result["scores"].values(), reverse=True)
        assert 0 < result["tokens_read"] <= result["tokens_total"]
    code, _, _ = tinyhat_command(
        capsys, "predict", run, tmp_path / "in.jsonl", "--strict", "--out", tmp_path / "o.jsonl"
    )
    assert code == 2
    assert [json.loads(x) for x in (tmp_path / "o.jsonl").read_text().splitlines()] == results
    _, out, _ = tinyhat_command(capsys, "predict", run, tmp_path / "in.jsonl", "--top-k", "3")
    assert all(len(r["scores"]) == 3 for r in map(json.loads, out.splitlines()) if "error" not in r)


def test_check_is_the_same_in_python(folder, capsys):
    code, out, err = tinyhat_command(capsys, "check", folder / "data", "--model", "linear", "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads(json.dumps(tinyhat.check(folder / "data", {"encoder.model": "linear"})))
    assert callable(tinyhat.demo)


def test_python_and_the_command_line_agree(run, folder, capsys):
    _, out, _ = tinyhat_command(capsys, "predict", run, folder / "data" / "test.jsonl")
    results = [json.loads(line) for line in out.splitlines()]
    texts = [json.loads(line)["text"] for line in (folder / "data" / "test.jsonl").read_text().splitlines()]
    classifier = tinyhat.load(run)
    again = classifier.predict(texts)
    assert [r["labels"] for r in again] == [r["labels"] for r in results]
    probabilities = classifier.predict_proba(texts)
    for row, result in zip(probabilities, results, strict=True):
        for label, score in result["scores"].items():
            assert row[classifier.labels.index(label)] == pytest.approx(score, abs=1e-6)


def test_a_decision_that_does_not_belong_is_refused(run, tmp_path, capsys):
    import shutil

    for name, edit in {
        "labels": lambda d: d["labels"].reverse(),
        "schema": lambda d: d.update(schema_version=9),
    }.items():
        copy = shutil.copytree(run / "model", tmp_path / name)
        decision = json.loads((copy / "decision.json").read_text())
        edit(decision)
        (copy / "decision.json").write_text(json.dumps(decision))
        code, _, err = tinyhat_command(capsys, "predict", copy, run.parent / "data" / "test.jsonl")
        assert (code, err.count("\n")) == (2, 1), err
    copy = shutil.copytree(run / "model", tmp_path / "weights")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(data))
    code, _, err = tinyhat_command(capsys, "predict", copy, run.parent / "data" / "test.jsonl")
    assert code == 2
    assert "sha256" in err


def test_check_speaks_to_people_and_to_programs(folder, capsys):
    code, out, _ = tinyhat_command(capsys, "check", folder / "data", "--model", "linear")
    assert code == 0
    assert "train" in out
    code, out, _ = tinyhat_command(capsys, "check", folder / "data", "--model", folder / "model", "--json")
    assert code == 0
    assert json.loads(out)


MISTAKES = {
    "missing file": (["train", "{dir}/nothing.csv", "--out", "{dir}/x"], "nothing.csv"),
    "unknown column": (["train", "{data}", "--text", "body", "--out", "{dir}/x"], "'body'"),
    "empty file": (["train", "{dir}/empty.jsonl", "--out", "{dir}/x"], "empty"),
    "no text in a row": (["train", "{dir}/notext.jsonl", "--out", "{dir}/x"], "line 2"),
    "malformed line": (["train", "{dir}/malformed.jsonl", "--out", "{dir}/x"], "line 2"),
    "truncated gzip": (["train", "{dir}/cut.jsonl.gz", "--out", "{dir}/x"], "cut.jsonl.gz"),
    "wrong dtype": (["train", "{dir}/numbers.jsonl", "--text", "text", "--label", "label", "--out", "{dir}/x"], "text"),
    "labels all unique": (["train", "{dir}/unique.jsonl", "--out", "{dir}/x"], "looks like an id"),
    "usage": (["train", "{data}"], "--out"),
    "unknown flag": (["train", "{data}", "--epoch", "1", "--out", "{dir}/x"], "--epoch"),
    "out is a folder": (["predict", "{run}", "{data}/test.jsonl", "--out", "{dir}"], "is a folder"),
    "tune the reading": (["tune", "{run}", "--set", "reading.max_tokens=9"], "only change"),
    "negative seed": (["train", "{data}", "--seed", "-1", "--out", "{dir}/x"], "train.seed"),
    "target twice": (["train", "{data}", "--target", "a", "--target", "a", "--out", "{dir}/x"], "twice"),
    "single class": (["train", "{dir}/oneclass.jsonl", "--out", "{dir}/x"], "only the label"),
    "NaN target": (["train", "{dir}/nan.csv", "--target", "y", "--out", "{dir}/x"], "line 3"),
    "unknown model": (["train", "{data}", "--model", "./no-such-folder", "--out", "{dir}/x"], "does not exist"),
    "unreachable hub": (["train", "{data}", "--model", "nobody/nothing-here", "--out", "{dir}/x"], "cannot be reached"),
    "resume nothing": (["train", "{data}", "--out", "{dir}/fresh", "--resume"], "nothing to resume"),
    "unknown setting": (["train", "{data}", "--out", "{dir}/x", "--set", "train.epoch=1"], "did you mean 'epochs'"),
    "unknown section": (["train", "{data}", "--out", "{dir}/x", "--set", "trian.epochs=1"], "did you mean 'train'"),
    "set without =": (["train", "{data}", "--out", "{dir}/x", "--set", "train.epochs"], "no '='"),
    "wrong value": (["train", "{data}", "--out", "{dir}/x", "--set", "train.epochs=many"], "train.epochs"),
    "two kinds of label": (["train", "{data}", "--label", "a", "--target", "b", "--out", "{dir}/x"], "exclude"),
    "epochs and steps": (["train", "{data}", "--epochs", "1", "--max-steps", "2", "--out", "{dir}/x"], "exclude"),
    "no such plan": (["train", "{data}", "--model", "{model}", "--out", "{dir}/x", "--set", "train.plan=fp8"], "fp8"),
    "missing recipe": (["train", "{data}", "--out", "{dir}/x", "--recipe", "best"], "recipe"),
    "no run": (["predict", "{dir}/nowhere", "{data}/test.jsonl"], "does not exist"),
    "not a run": (["evaluate", "{data}"], "not a tinyhat run"),
    "no such split": (["evaluate", "{run}", "--split", "train"], "train"),
    "predict nothing": (["predict", "{run}", "{dir}/nothing.jsonl"], "nothing.jsonl"),
    "folds of one": (["tune", "{run}", "--set", "tune.folds=1"], "tune.folds"),
    "too many tokens": (["train", "{data}", "--model", "{model}", "--max-tokens", "4096", "--out", "{dir}/x"], "4096"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(name, folder, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = tiny_rows("single", 8)
    write = {
        "empty.jsonl": "",
        "notext.jsonl": '{"text": "a b", "label": "x"}\n{"text": " ", "label": "y"}\n',
        "malformed.jsonl": '{"text": "a b", "label": "x"}\n{"text": "a b", "lab\n',
        "numbers.jsonl": "".join(json.dumps({"text": 3.5, "label": row["label"]}) + "\n" for row in rows),
        "unique.jsonl": "".join(
            json.dumps({"text": row["text"], "label": f"u{i}"}) + "\n" for i, row in enumerate(rows)
        ),
        "oneclass.jsonl": "".join(json.dumps({"text": row["text"], "label": "x"}) + "\n" for row in rows),
        "nan.csv": "text,y\nsome words,1.5\nother words,nan\nmore,2\n",
    }
    for file, text in write.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows[0]).encode() * 50)[:-20])
    words, wanted = MISTAKES[name]
    places = {"dir": tmp_path, "data": folder / "data", "model": folder / "model", "run": run}
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    code, out, err = tinyhat_command(capsys, *(word.format(**places) for word in words))
    lines = [line for line in err.splitlines() if line.startswith("tinyhat: ")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0], "the sentence comes last"
    assert wanted in lines[0]
    assert "Traceback" not in err
    assert out == ""
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before, "nothing was changed"


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(tinyhat.UserError):
        main(["evaluate", "nowhere", "--debug"])
    capsys.readouterr()


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(run, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "o.jsonl"))

    monkeypatch.setattr("os.fsync", full)
    code, _, err = tinyhat_command(
        capsys, "predict", run, run.parent / "data" / "test.jsonl", "--out", tmp_path / "o.jsonl"
    )
    assert code == 2
    assert "disk is full" in err
    assert list(tmp_path.glob("*o.jsonl*")) == []


def test_linear_runs_through_the_same_verbs(folder, tmp_path, capsys):
    code, out, err = tinyhat_command(
        capsys,
        "train",
        folder / "single",
        "--model",
        "linear",
        "--out",
        tmp_path / "run",
        "--set",
        "evaluate.bootstrap=0",
    )
    assert code == 0, err
    assert "accuracy" in out
    code, out, _ = tinyhat_command(capsys, "predict", tmp_path / "run", folder / "single" / "test.jsonl")
    assert code == 0
    truth = [json.loads(line)["label"] for line in (folder / "single" / "test.jsonl").read_text().splitlines()]
    assert np.mean([json.loads(x)["labels"] == [t] for x, t in zip(out.splitlines(), truth, strict=True)]) > 0.9
    code, _, _ = tinyhat_command(capsys, "evaluate", tmp_path / "run", "--json")
    assert code == 0
