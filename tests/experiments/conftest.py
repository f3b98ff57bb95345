"""The experiments' scripts as modules; both have modules of the same names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
MODULES = ("config", "data", "metrics", "model", "prepare_data", "run")


@pytest.fixture
def load_script(monkeypatch):
    def load(task, name="run"):
        for module in MODULES:
            sys.modules.pop(module, None)
        monkeypatch.syspath_prepend(EXPERIMENTS / task)
        return importlib.import_module(name)

    yield load
    for module in MODULES:
        sys.modules.pop(module, None)


@pytest.fixture
def mistake(monkeypatch, capsys, load_script):
    """Call a script's main with flags that are wrong; return the sentence."""

    def call(task, *words, script="run"):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            load_script(task, script).main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    return call
