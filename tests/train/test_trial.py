"""What a run of an experiment is called and what is measured of it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tiny.models import tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from tinyhat.encoder.untrained import untrained_roberta
from tinyhat.errors import UserError
from tinyhat.report.experiment import by_row, read_runs
from tinyhat.train import flops
from tinyhat.train import meter as meters
from tinyhat.train.flops import peak_flops, step_flops
from tinyhat.train.loop import peak_memory_gb
from tinyhat.train.meter import Meter, reset_peak
from tinyhat.train.precision import choose_train_plan
from tinyhat.train.trial import Trial, run_grid
from tinyhat.train.watch import Divergence, Watch

CPU = torch.device("cpu")


def trial(**settings):
    return Trial("classification", "fp32", 0, {"model": "a/b", "layout": "packed"}, settings)


def test_runs_of_other_settings_are_other_runs(tmp_path):
    long, short = trial(max_steps=5000, limit=None), trial(max_steps=100, limit=None)
    assert long.key != short.key
    assert long.key == trial(limit=None, max_steps=5000).key

    def build(_):
        raise UserError("not here")

    said = []
    run_grid([long, short], build, tmp_path, False, 10, said.append)
    found = read_runs(tmp_path)
    assert [r["settings"]["max_steps"] for r in found] == [5000, 100]
    assert len(by_row(found)) == 2
    (tmp_path / "runs.jsonl").write_text(json.dumps(found[0] | {"status": "done"}) + "\n")
    run_grid([long, short], build, tmp_path, True, 10, said.append)
    assert said[2:] == [f"{long.key}: there already", f"{short.key}: cannot run: not here"]


class Clock:
    """Seconds by hand, and a peak that is what the step before it took."""

    def __init__(self, monkeypatch, seconds, peaks):
        ticks = [tick for s in itertools.accumulate(seconds, initial=0) for tick in (s, s)][1:-1]
        self.ticks, self.peaks = iter(ticks), iter(peaks)
        monkeypatch.setattr(meters.time, "perf_counter", lambda: next(self.ticks))
        monkeypatch.setattr(meters, "peak_memory_gb", lambda: next(self.peaks))
        monkeypatch.setattr(meters, "reset_peak", lambda: None)
        monkeypatch.setattr(meters, "peak_flops", lambda *_: (1000.0, "by hand"))


def measure(plan="fp32", steps=4, watched=(), evaluated=99):
    meter = Meter(choose_train_plan(plan, CPU), CPU)
    for step in range(steps):
        meter.begin()
        meter.end(8, 100, 500.0, step in watched)
        meter.evaluated = step >= evaluated
    return meter.facts()


def test_speed_and_memory_are_of_steps_that_nothing_looked_at(monkeypatch):
    Clock(monkeypatch, (50, 1, 7, 3), (1.0, 2.0))
    found = measure(watched=(0, 2))
    assert found["timed_steps"] == 2
    assert found["samples_per_second"] == 4.0  # 16 documents in 1 + 3 seconds
    assert found["tokens_per_second"] == 50.0
    assert found["mfu"] == 0.25
    assert found["warmup_seconds"] == 50
    assert found["peak_memory_gb"] == 2.0


def test_warm_up_and_memory_after_an_evaluation_do_not_count(monkeypatch):
    Clock(monkeypatch, (9,) * 5 + (2,) * 6, [1.0] * 3)
    found = measure(steps=11, evaluated=2)
    assert found["samples_per_second"] == 4.0
    assert found["peak_memory_gb"] == 1.0


def test_without_such_a_step_there_is_no_number(monkeypatch):
    Clock(monkeypatch, (9,), [1.0])
    assert measure(steps=1)["samples_per_second"] is None
    Clock(monkeypatch, (9, 9, 9), [])
    found = measure(steps=3, watched=(0, 1, 2))
    assert found["samples_per_second"] is found["peak_memory_gb"] is found["mfu"] is None


def test_emulated_products_have_no_speed(monkeypatch):
    for plan in ("amp_fp16", "fp16_master"):
        Clock(monkeypatch, (1, 1, 1), [1.0] * 3)
        found = measure(plan, steps=3)
        assert found["products"] == "emulated"
        assert found["samples_per_second"] is found["tokens_per_second"] is found["mfu"] is found["peak_flops"] is None
    Clock(monkeypatch, (1, 1, 1), [1.0] * 3)
    assert measure("amp_bf16", steps=3)["products"] == "native"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_logit_may_be_negative(dtype):
    watch, layer = Watch(), torch.nn.Linear(1, 1)
    for logits in ([[1.0, -9.0]], [[2.0, 3.0]]):
        watch._see(layer, (), torch.tensor(logits, dtype=dtype))
    assert watch.facts()["largest_logit"] == 9.0
    watch._see(layer, (), torch.tensor([[1.0, float("nan")]], dtype=dtype))
    assert watch.facts()["largest_logit"] is None
    watch.before_step(3)
    assert watch.facts() == {"largest_logit": None}


def test_a_step_that_copies_the_weights_says_so():
    from types import SimpleNamespace

    watch = Watch(4)
    watch.prepare(SimpleNamespace(model=tiny_model("bert")))
    looked = []
    for step in range(9):
        watch.before_step(step)
        watch.after_step(step)
        looked.append(watch.looked)
    assert [i for i, x in enumerate(looked) if x] == [0, 3, 7]
    assert watch.facts().get("unchanged_share") is None


def test_a_run_has_diverged_at_three_times_the_running_median():
    rule = Divergence()
    assert not any(rule.diverged(loss) for loss in (1.0, 1.0, 1.0, 1.0, 50.0))  # too early to tell
    assert not rule.diverged(3.0)
    assert rule.diverged(3.01)
    for _ in range(60):
        assert not rule.diverged(2.9)
    assert not rule.diverged(8.6)  # the median is that of the last 50
    assert rule.diverged(8.8)
    for loss in (math.nan, math.inf):
        assert Divergence().diverged(loss)


def test_flops_of_a_step_by_hand():
    lengths = np.array([5, 9])
    body, head = 2 * (4 * 32 * 32 + 2 * 32 * 64), 32 * 32 + 32 * 3
    attention = 12 * 2 * 32 * (25 + 81)
    assert step_flops(tiny_model("roberta"), lengths) == 6 * body * 14 + 6 * head * 2 + attention
    shape = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    body = 8 * 24 + 8 * 8 + 2 * 8 * 32
    # the tied output layer is a product for every token, and attention is causal
    expected = 6 * (body + 11 * 8) * 4 + 0.5 * 12 * 8 * 16
    assert step_flops(GPT2LMHeadModel(shape), np.array([4]), every_token_out=True) == expected


def test_the_peak_is_that_of_the_plans_products(monkeypatch):
    asked = []
    monkeypatch.setattr(flops, "_measured", lambda *words: asked.append(words) or 5.0)
    for plan in ("fp32", "tf32", "amp_bf16", "amp_fp16"):
        assert peak_flops(choose_train_plan(plan, CPU), CPU)[0] == 5.0
    assert asked == [
        (torch.float32, "highest", "cpu"), (torch.float32, "high", "cpu"), (torch.bfloat16, "highest", "cpu"),
        (torch.float32, "highest", "cpu"),
    ]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    plans = [choose_train_plan(plan, CPU) for plan in ("fp32", "tf32", "amp_bf16")]
    assert [peak_flops(p, torch.device("cuda"))[0] for p in plans] == [67e12, 494.7e12, 989.4e12]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is the GPU's")
def test_the_peak_of_one_run_is_not_the_next_ones():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process start its peak anew")
    held = torch.ones(50_000_000)  # 200 MB
    before = peak_memory_gb()
    del held
    reset_peak()
    assert peak_memory_gb() < before - 0.1


def test_random_weights_come_from_the_seed_alone():
    first = untrained_roberta(3, 5, layers=1, width=64).state_dict()
    torch.rand(7)
    again, other = (untrained_roberta(3, seed, layers=1, width=64).state_dict() for seed in (5, 6))
    matrices = [n for n, w in first.items() if w.ndim == 2 and w.std() > 0]
    assert len(matrices) > 6
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in matrices)


@pytest.mark.parametrize("step", [0, 1])
def test_only_before_the_first_step_is_a_type_error_what_a_plan_cannot_do(tmp_path, monkeypatch, step):
    def broken(trial, bench, folder, every):
        bench.trainer.progress.step = step
        raise TypeError("no such operation")

    bench = SimpleNamespace(trainer=SimpleNamespace(progress=SimpleNamespace(step=0)))
    monkeypatch.setattr("tinyhat.train.trial._run", broken)
    trial = Trial("classification", "fp32", 0)
    if step:
        with pytest.raises(TypeError, match="no such operation"):
            run_grid([trial], lambda _: bench, tmp_path, False, 10, print)
    else:
        run_grid([trial], lambda _: bench, tmp_path, False, 10, print)
        assert json.loads((tmp_path / "runs.jsonl").read_text())["reason"] == "TypeError: no such operation"
