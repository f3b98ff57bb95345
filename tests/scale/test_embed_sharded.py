"""Embedding by several workers gives the store of a single process, also when one of them dies in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from tests.tiny.models import save_tiny
from tests.train.test_ranks import free_port

import tinyhat
from tinyhat.config import DataConfig
from tinyhat.embed import write
from tinyhat.embed.parts import Parts
from tinyhat.embed.store import read_store
from tinyhat.errors import UserError
from tinyhat.run import file_sha256
from tinyhat.scale import embed as scale_embed
from tinyhat.scale.embed import embed_sharded
from tinyhat.scale.engine import run_shards

EXACT = {"plan": "fp32", "exact": True}
DATA = DataConfig()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scale")
    model = save_tiny(folder / "model", "bert")
    source = folder / "docs.jsonl"
    lines = [json.dumps({"id": f"n{i}", "text": f"law {'market ' * (13 * i % 90)} fish {i}"}) for i in range(70)]
    lines[9] = "not json"
    source.write_text("\n".join(lines) + "\n")
    single = folder / "single.npy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "PART", 16)
        tinyhat.embed(model, source, single, **EXACT)
    yield folder, model, source, single
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(write, "PART", 16)


def same(found, expected) -> None:
    assert file_sha256(found) == file_sha256(expected)
    a, b = read_store(found), read_store(expected)
    assert a.ids == b.ids
    assert a.manifest["model_sha256"] == b.manifest["model_sha256"]
    assert not Parts(found.with_name(found.name + ".parts")).folder.exists()


def test_goes_on_after_a_stop_and_equals_a_single_process(job, monkeypatch):
    folder, model, source, single = job
    out = folder / "local.npy"
    whole, made = scale_embed._work, []

    def dies(embedder, parts, words, part):
        if part == 2 and not made:
            made.append(part)
            raise KeyboardInterrupt
        whole(embedder, parts, words, part)

    monkeypatch.setattr(scale_embed, "_work", dies)
    with pytest.raises(KeyboardInterrupt):
        embed_sharded(model, str(source), [out], DATA, say=lambda _: None, **EXACT)
    assert not out.exists()
    said: list[str] = []
    embed_sharded(model, str(source), [out], DATA, say=said.append, resume=True, **EXACT)
    assert "2 of 5 parts are there already" in said
    same(out, single)
    embed_sharded(model, str(source), [out], DATA, say=said.append, resume=True, **EXACT)
    assert "everything is there already" in said


def test_torchrun_shares_the_parts_among_its_ranks(job):
    folder, model, source, single = job
    out = folder / "ranks.npy"
    script = folder / "ranks.py"
    lines = ["import sys", "import tinyhat", "from tinyhat.embed import write"]
    lines += ["write.PART = 16", "tinyhat.embed(*sys.argv[1:4], plan='fp32', exact=True)"]
    script.write_text("\n".join(lines))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command += [str(free_port()), str(script), str(model), str(source), str(out)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    same(out, single)


class Kill:
    """Work that kills its own process once, in the middle of the parts, then does what it should."""

    def __init__(self, folder, make):
        self.folder, self.work = folder, make()

    def __call__(self, part):
        try:
            (self.folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            self.work(part)
            return
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)


def mistaken():
    """Make work that the user's input makes impossible."""

    def work(part):
        raise UserError("this part is a mistake")

    return work


# Ray sets options of its own that it calls deprecated, and leaves sockets to the end of the process
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_completes_though_a_worker_is_killed(job, monkeypatch):
    ray = pytest.importorskip("ray")
    folder, model, source, single = job
    out = folder / "ray.npy"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def on_ray(make, parts, engine, workers, progress=None):
        run_shards(partial(Kill, folder, make), parts, engine, workers, progress)

    monkeypatch.setattr(scale_embed, "run_shards", on_ray)
    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    try:  # a cluster that is there already is used, and left running
        embed_sharded(model, str(source), [out], DATA, "ray", 2, say=lambda _: None, **EXACT)
        assert ray.is_initialized()
        with pytest.raises(UserError, match="this part is a mistake"):
            run_shards(mistaken, [0, 1], "ray", 1)
    finally:
        ray.shutdown()
    assert (folder / "killed").exists(), "a worker was killed"
    same(out, single)


def test_words_and_packed_batches_by_workers(job):
    folder, model, source, _single = job
    for name, settings in (("words", {"words": True}), ("packed", {"layers": "-2:", "normalize": True})):
        outs = [folder / f"{name}-{way}.npy" for way in ("one", "many")]
        tinyhat.embed(model, source, outs[0], plan="fp32", **settings)
        embed_sharded(model, str(source), [outs[1]], DATA, say=lambda _: None, plan="fp32", **settings)
        found, expected = (read_store(out) for out in reversed(outs))
        assert found.ids == expected.ids
        np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)


def test_progress_is_told_part_by_part(monkeypatch):
    told: list[int] = []
    run_shards(lambda: lambda part: None, [4, 5, 6], progress=told.append)
    assert told == [1, 1, 1]
    monkeypatch.setenv("WORLD_SIZE", "2")  # the other rank is taken to be as far
    told.clear()
    run_shards(lambda: lambda part: None, [4, 5, 6], progress=told.append)
    assert told == [2, 1]


def test_a_worker_with_another_model_is_refused(job, tmp_path):
    _folder, _model, _source, single = job
    other = save_tiny(tmp_path / "other", "bert", seed=3)
    settings = {"plan": "fp32", "layers": "last"}
    with pytest.raises(UserError, match="a worker finds another model"):
        scale_embed._worker(str(other), settings, read_store(single).manifest["model_sha256"], Parts(tmp_path), None)


def test_without_ray_nothing_is_begun(job, tmp_path, monkeypatch):
    _folder, model, source, _single = job
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'tinyhat\[ray\]'"):
        tinyhat.embed(model, source, tmp_path / "v.npy", engine="ray", **EXACT)
    assert not any(tmp_path.iterdir())
