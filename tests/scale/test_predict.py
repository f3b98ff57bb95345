"""Prediction by several workers gives the file of a single process, also when one of them dies in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from tests.tiny.corpus import write_tiny
from tests.tiny.models import save_tiny
from tests.train.test_ranks import free_port

import tinyhat
from tinyhat.errors import UserError
from tinyhat.scale import predict as scale_predict
from tinyhat.scale.engine import run_shards
from tinyhat.scale.predict import predict_sharded
from tinyhat.verbs import predict


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    os.environ["TINYHAT_CACHE"] = str(folder / "cache")
    write_tiny(folder / "data", "multi", train=30, dev=10, test=0)
    model = save_tiny(folder / "model", "bert")
    settings = {"encoder.model": str(model), "reading.max_tokens": 48, "train.max_steps": 2, "train.plan": "fp32"}
    settings |= {"evaluate.baseline": False, "evaluate.bootstrap": 0}
    run = tinyhat.train(folder / "data", folder / "run", settings, say=lambda _: None)
    source = folder / "new.jsonl"
    rows = [{"id": f"n{i}", "text": f"law court {'market ' * (i % 7)}fish tax {i}"} for i in range(70)]
    lines = [json.dumps(row) for row in rows]
    lines[3], lines[40] = '{"id": "n3", "text": ""}', "not json"
    source.write_text("\n".join(lines) + "\n")
    single = folder / "single.jsonl"
    predict(run.path, str(source), single)
    yield folder, run.path, source, single.read_text()
    del os.environ["TINYHAT_CACHE"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(scale_predict, "SHARD", 16)


def same(found: str, expected: str) -> None:
    """The same lines; probabilities may differ in the last bits, packs being others."""
    pairs = [(json.loads(a), json.loads(b)) for a, b in zip(found.splitlines(), expected.splitlines(), strict=True)]
    for a, b in pairs:
        assert {k: v for k, v in a.items() if k != "scores"} == {k: v for k, v in b.items() if k != "scores"}
        assert a.get("scores", {}) == pytest.approx(b.get("scores", {}), abs=1e-6)


def test_shards_give_the_lines_of_a_single_process_and_go_on_after_a_stop(job, monkeypatch):
    folder, run, source, expected = job
    out = folder / "local.jsonl"
    made = []
    whole = scale_predict._worker

    def dies(*arguments):
        work = whole(*arguments)

        def fragile(shard):
            if shard == 2 and not made:
                made.append(shard)
                raise KeyboardInterrupt
            work(shard)

        return fragile

    monkeypatch.setattr(scale_predict, "_worker", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_sharded(run, str(source), out)
    assert not out.exists()
    with pytest.raises(UserError, match="unfinished prediction with another top_k"):
        predict_sharded(run, str(source), out, top_k=2)
    first = folder / "local.jsonl.shards" / "out_000000.jsonl"
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(scale_predict, "remove", lambda path: None)
    assert predict_sharded(run, str(source), out) == (2, 70)
    assert first.stat().st_mtime_ns == written, "a finished shard is not predicted again"
    same(out.read_text(), expected)


def test_a_stopped_prediction_of_pairs_goes_on(job, tmp_path, monkeypatch):
    _folder, run, _source, _expected = job
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps({"a": "law court", "b": f"fish {i}"}) + "\n" for i in range(5)))
    pair = {"pair": ("a", "b"), "text": None}  # as the command line has it
    with monkeypatch.context() as patch:
        patch.setattr(scale_predict, "run_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict_sharded(run, str(source), tmp_path / "out.jsonl", columns=pair)
    assert predict_sharded(run, str(source), tmp_path / "out.jsonl", columns=pair) == (0, 5)


def test_torchrun_shares_the_shards_among_its_ranks(job):
    folder, run, source, expected = job
    out = folder / "ranks.jsonl"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command += [str(free_port()), "-m", "tinyhat", "predict", str(run), str(source), "--out", str(out)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 70 rows could not be read" in done.stderr
    same(out.read_text(), expected)


class Kill:
    """Work that kills its own process once, in the middle of the shards, then does what it should."""

    def __init__(self, folder, make):
        self.folder, self.work = folder, make()

    def __call__(self, shard):
        try:
            (self.folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            self.work(shard)
            return
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)


# Ray sets options of its own that it calls deprecated, and leaves sockets to the end of the process
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_completes_though_a_worker_is_killed(job, monkeypatch):
    ray = pytest.importorskip("ray")
    folder, run, source, expected = job
    out = folder / "ray.jsonl"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    worker = scale_predict._worker
    monkeypatch.setattr(scale_predict, "_worker", lambda *a: None)

    def on_ray(make, shards, engine, workers, progress=None):
        run_shards(partial(Kill, folder, partial(worker, *make.args)), shards, engine, workers, progress)

    monkeypatch.setattr(scale_predict, "run_shards", on_ray)
    assert predict_sharded(run, str(source), out, "ray", 2) == (2, 70)
    assert (folder / "killed").exists(), "a worker was killed"
    assert not ray.is_initialized()
    same(out.read_text(), expected)


def test_bad_input(job, tmp_path, monkeypatch):
    _, run, source, _ = job
    with pytest.raises(UserError, match="name INPUT and --out FILE"):
        predict(run, str(source), None, engine="ray")
    with pytest.raises(UserError, match="does not exist"):
        predict_sharded(run, str(tmp_path / "none.jsonl"), tmp_path / "out.jsonl")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="leave torchrun out"):
        run_shards(lambda: print, [0], "ray")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'tinyhat\[ray\]'"):
        run_shards(lambda: print, [0], "ray")
