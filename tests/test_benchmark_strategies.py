"""benchmarks/strategies.py uses only results of the same options again."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest


def script():
    path = Path(__file__).parent.parent / "benchmarks" / "strategies.py"
    spec = importlib.util.spec_from_file_location("benchmark_strategies", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_of_other_options_are_refused(tmp_path):
    claim = script()._claim

    def options(**changes):
        common = {"source": "s", "forgetting": "f", "documents": 10, "epochs": 5.0, "model": "minilm", "set": []}
        return argparse.Namespace(**(common | {"out": tmp_path / "out", "seeds": 2, "arms": ["full"]} | changes))

    claim(options())
    claim(options(seeds=5, arms=["full", "EMA"]))
    for changes in ({"epochs": 6.0}, {"documents": 9}, {"model": "m"}, {"forgetting": "g"}, {"set": ["train.seed=1"]}):
        with pytest.raises(SystemExit, match=next(iter(changes))):
            claim(options(**changes))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "full-0.json").write_text("{}")
    with pytest.raises(SystemExit, match="name another folder"):
        claim(options(out=tmp_path / "old"))
