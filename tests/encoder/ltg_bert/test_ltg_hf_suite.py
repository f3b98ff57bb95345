"""Transformers' own model tests on LTG-BERT, where ``make hf-suite`` has fetched them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "hf_suite" / "run.py"


def test_model_tester_mixin() -> None:
    done = subprocess.run([sys.executable, str(RUN), "--offline"], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
