"""What a run of an experiment is called and what is measured of it."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from tests.tiny.models import tiny_model

from tinyhat.encoder.untrained import untrained_roberta
from tinyhat.errors import UserError
from tinyhat.report.experiment import by_row, read_runs
from tinyhat.train import meter as meters
from tinyhat.train.meter import Meter
from tinyhat.train.precision import choose_train_plan
from tinyhat.train.trial import Trial, run_grid
from tinyhat.train.watch import Watch

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


def test_random_weights_come_from_the_seed_alone():
    first = untrained_roberta(3, 5, layers=1, width=64).state_dict()
    torch.rand(7)
    again, other = (untrained_roberta(3, seed, layers=1, width=64).state_dict() for seed in (5, 6))
    matrices = [n for n, w in first.items() if w.ndim == 2 and w.std() > 0]
    assert len(matrices) > 6
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in matrices)
