"""The report of a grid: paired intervals, drift, stability, padding tax and ranks against what they are by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tinyhat.errors import UserError
from tinyhat.report.experiment import (
    Tax,
    by_row,
    compare_ranks,
    padding_tax,
    paired,
    read_runs,
    settings_apart,
    stability,
    with_drift,
)
from tinyhat.report.experiment_page import build_experiment_report, show_difference

ENVIRONMENT = {"processor": "a", "cores": 2, "packages": {"torch": "2", "transformers": "5"}, "command": ["run.py"]}


def run(plan, seed, quality, task="classification", layout="packed", speed=10.0, **changes):
    row = {"model": "m", "head": "note", "reduction": "sum", "layout": layout} if task == "classification" else {}
    name = "tuned_micro_f1" if task == "classification" else "validation_loss"
    found = {
        "key": "-".join([task, layout, plan, str(seed)]), "task": task, "plan": plan, "seed": seed, **row,
        "status": "done", "metrics": {name: quality}, "samples_per_second": speed, "skipped_steps": 0,
        "environment": ENVIRONMENT, "threads": 1, "peak_flops": 1e12, "peak_flops_from": "measured", "last_loss": 1.0,
    }  # fmt: skip
    return found | changes


def write(folder, runs):
    (folder / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in runs))
    (folder / "steps").mkdir()
    for r in runs:
        lines = [{"step": s, "loss": 2.0 / s, "gradient_norm": 1.0, "largest_logit": 3.0 + s} for s in (1, 2, 3)]
        (folder / "steps" / f"{r['key']}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


GRID = [
    *(run("fp32", s, q, speed=10) for s, q in enumerate((0.50, 0.52, 0.51))),
    *(run("bf16_pure", s, q, speed=20) for s, q in enumerate((0.40, 0.44, 0.42))),
    *(run("amp_bf16", s, q, speed=18) for s, q in enumerate((0.51, 0.52, 0.50))),
    run("fp16_naive", 0, None, status="diverged", diverged_at=2, metrics=None),
    run("tf32", 0, None, status="cannot run", reason="needs a <GPU>", metrics=None),
    *(run("fp32", s, 0.5, layout="padded", speed=5) for s in range(2)),
    *(run("fp32", s, 3.0 + s, task="language_modeling") for s in range(3)),
    *(run("bf16_pure", s, 2.0 + s, task="language_modeling") for s in range(3)),
    *(run("amp_bf16", s, 2.5 + s, task="language_modeling", skipped_steps=4) for s in range(3)),
]


def test_paired_differences_are_students(tmp_path):
    base, other = {0: 0.50, 1: 0.52, 2: 0.51, 9: 1.0}, {0: 0.40, 1: 0.44, 2: 0.42}
    found = paired(other, base)
    expected = stats.ttest_rel([0.40, 0.44, 0.42], [0.50, 0.52, 0.51]).confidence_interval(0.95)
    assert found.pairs == 3
    np.testing.assert_allclose(found.interval, expected)
    assert found.clear
    assert paired({0: 1.0}, {0: 0.5}).interval is None
    assert paired({0: 1.0}, {1: 0.5}) is None
    assert show_difference(paired({0: 1.0}, {0: 0.5})) == "+0.5000"


def test_stability_tax_and_ranks():
    rows = by_row(GRID)
    grid = rows[("classification", "m", "note", "sum", "packed")]
    assert stability(grid)["fp16_naive"] == {0: "diverged at 2"}
    assert stability(grid)["tf32"] == {0: "cannot run"}
    assert stability(rows[("language_modeling",)])["amp_bf16"][2] == "done, 4 skipped"
    assert padding_tax(GRID) == [Tax(("classification", "m", "note", "sum"), "fp32", 2, 5.0, 10.0)]
    ranks = compare_ranks(grid, rows[("language_modeling",)], ("tuned_micro_f1", "validation_loss"))
    assert ranks.ranks["bf16_pure"] == (3.0, 1.0)
    assert next(iter(ranks.ranks)) == "bf16_pure"  # the largest flip first
    # best first: fp32 and amp_bf16 (tied), bf16_pure, against bf16_pure, amp_bf16, fp32
    assert ranks.rho == pytest.approx(stats.spearmanr([1.5, 1.5, 3], [3, 2, 1]).statistic)


def test_taxes_are_of_one_row_and_of_seeds_that_both_have():
    runs = [
        run("fp32", 0, 0.5, speed=5, layout="padded"), run("fp32", 0, 0.5, speed=10),
        run("fp32", 1, 0.5, speed=90), run("fp32", 2, None, speed=70, layout="padded", status="diverged"),
        run("fp32", 0, 0.5, speed=1, layout="padded", head="stock"), run("fp32", 0, 0.5, speed=4, head="stock"),
        run("bf16_pure", 0, 0.5, speed=3, layout="padded"), run("bf16_pure", 1, 0.5, speed=3),
        run("tf32", 0, 0.5, speed=3, layout="padded", setup="a"), run("tf32", 0, 0.5, speed=3, setup="b"),
    ]  # fmt: skip
    found = [(t.row[2], t.plan, t.seeds, t.padded, t.packed) for t in padding_tax(runs)]
    assert found == [("note", "fp32", 1, 5.0, 10.0), ("stock", "fp32", 1, 1.0, 4.0)]


def test_ranks_are_of_differences_on_shared_seeds():
    # the third seed is a bad one for all: a mean over the seeds at hand would put the plan without it first
    first = {
        "fp32": [run("fp32", s, q) for s, q in enumerate((0.50, 0.52, 0.10))],
        "amp_bf16": [run("amp_bf16", s, q) for s, q in enumerate((0.51, 0.53, 0.11))],
        "bf16_pure": [run("bf16_pure", s, q) for s, q in enumerate((0.49, 0.51))],
    }
    second = {
        p: [run(p, r["seed"], i + 10.0 * r["seed"], task="language_modeling") for r in rs]
        for i, (p, rs) in enumerate(first.items())
    }
    found = compare_ranks(first, second, ("tuned_micro_f1", "validation_loss"))
    assert found.ranks == {"amp_bf16": (1.0, 2.0), "fp32": (2.0, 1.0), "bf16_pure": (3.0, 3.0)}
    assert found.seeds == {"amp_bf16": (3, 3), "fp32": (3, 3), "bf16_pure": (2, 2)}


def test_only_equal_settings_are_compared(tmp_path):
    long = {"setup": "aaaa", "settings": {"max_steps": 5000, "limit": None}}
    short = {"setup": "bbbb", "settings": {"max_steps": 100, "limit": None}}
    runs = [run("fp32", 0, 0.5, **long), run("amp_bf16", 0, 0.4, **short, products="emulated")]
    for r in runs:
        r["key"] += r["setup"]
    assert settings_apart(runs) == {"aaaa": "max_steps 5000", "bbbb": "max_steps 100"}
    assert settings_apart(runs[:1]) == {"aaaa": ""}
    write(tmp_path, runs)
    (tmp_path / "logits").mkdir()
    for r in runs:
        np.save(tmp_path / "logits" / f"{r['key']}.npy", np.ones((1, 2), np.float32))
    assert not any("logit_drift" in r for r in with_drift(read_runs(tmp_path), tmp_path))
    table = build_experiment_report(tmp_path)[1].read_text()
    assert "## classification · m · note · sum · packed · max_steps 5000" in table
    assert "| amp_bf16 | 1 | – |" in table
    assert "no MFU): amp_bf16." in table


def test_means_are_of_the_seeds_that_finished_and_say_how_many(tmp_path):
    runs = [run("fp32", s, 0.5) for s in range(3)]
    runs += [run("bf16_pure", 0, 0.4, last_loss=2.0), run("bf16_pure", 1, 0.4, last_loss=2.0)]
    runs += [run("bf16_pure", 2, None, metrics=None, status="diverged", diverged_at=4, last_loss=99.0)]
    write(tmp_path, runs)
    table = build_experiment_report(tmp_path)[1].read_text()
    line = next(x for x in table.splitlines() if x.startswith("| bf16_pure | 2 of 3 |"))
    assert "| 2.0000 ± 0.0000 |" in line
    assert "| fp32 | 3 |" in table


def test_drift_is_relative_to_fp32_of_the_same_seed(tmp_path):
    (tmp_path / "logits").mkdir()
    runs = [run("fp32", 0, 0.5), run("bf16_pure", 0, 0.5), run("bf16_pure", 1, 0.5)]
    exact = np.array([[3.0, -4.0]], np.float32)
    np.save(tmp_path / "logits" / f"{runs[0]['key']}.npy", exact)
    np.save(tmp_path / "logits" / f"{runs[1]['key']}.npy", exact + 0.5)
    found = with_drift(runs, tmp_path)
    assert found[1]["logit_drift"] == pytest.approx(0.5 / np.sqrt(12.5))
    assert "logit_drift" not in found[0]
    assert "logit_drift" not in found[2]


def test_the_page_and_the_table_are_whole(tmp_path):
    write(tmp_path, GRID)
    html, markdown = build_experiment_report(tmp_path)
    page, table = html.read_text(), markdown.read_text()
    for text in ("bf16_pure", "diverged at 2", "Padding tax", "Spearman", "needs a"):
        assert text in page, text
        assert text in table, text
    assert "needs a &lt;GPU&gt;" in page
    assert page.count("<svg") == 8
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "| classification · m · note · sum | fp32 | 2 | 5.00 | 10.00 | 2.00 |" in table
    assert "-0.0900 (-0.1148 to -0.0652)" in table


def test_only_differences_that_leave_out_0_are_coloured(tmp_path):
    values = {"fp32": (0.50, 0.52, 0.51), "amp_bf16": (0.51, 0.51, 0.52), "bf16_pure": (0.40, 0.42, 0.415)}
    write(tmp_path, [run(plan, seed, value) for plan, all in values.items() for seed, value in enumerate(all)])
    page = build_experiment_report(tmp_path)[0].read_text()
    coloured = {plan: f'<td>{plan}</td><td>3</td><td class="clear">' in page for plan in values}
    assert coloured == {"fp32": False, "amp_bf16": False, "bf16_pure": True}


def test_newer_runs_replace_older_ones_and_damage_is_named(tmp_path):
    write(tmp_path, [run("fp32", 0, 0.1), run("fp32", 0, 0.2)])
    assert [r["metrics"]["tuned_micro_f1"] for r in read_runs(tmp_path)] == [0.2]
    with (tmp_path / "runs.jsonl").open("a") as stream:
        stream.write("{}\n")
    with pytest.raises(UserError, match=r"runs.jsonl, line 3 is not a run"):
        read_runs(tmp_path)


def test_the_command_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "tinyhat", "experiment", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no runs.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
