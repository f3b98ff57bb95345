"""A saved folder carries the model's code: it loads with trust_remote_code=True where there is no tinyhat."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny.ltg_bert import ltg_model, ltg_padded, ltg_sequences

from tinyhat.encoder.ltg_bert import (
    LtgBertForMaskedLM,
    LtgBertForSequenceClassification,
    LtgBertForTokenClassification,
    LtgBertModel,
)
from tinyhat.encoder.quiet import quiet

KINDS = {
    "AutoModel": LtgBertModel,
    "AutoModelForMaskedLM": LtgBertForMaskedLM,
    "AutoModelForSequenceClassification": LtgBertForSequenceClassification,
    "AutoModelForTokenClassification": LtgBertForTokenClassification,
}
STRANGER = """
import sys, torch, transformers

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tinyhat":
            raise ImportError("there is no tinyhat here")

sys.meta_path.insert(0, Nothing())
given = torch.load(sys.argv[1], weights_only=True)
for auto, folder in zip(sys.argv[2::2], sys.argv[3::2]):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        out = model(given["ids"], given["mask"])[0]
    torch.testing.assert_close(out, given[auto], atol=1e-6, rtol=1e-6)
assert "tinyhat" not in sys.modules
# a masked LM becomes a classifier: the carried code draws the head
auto = transformers.AutoModelForSequenceClassification
model = auto.from_pretrained(sys.argv[5], trust_remote_code=True, num_labels=7)
assert model.classifier.weight.shape[0] == 7 and float(model.classifier.bias.abs().max()) == 0
"""


def test_a_process_without_tinyhat(tmp_path: Path) -> None:
    ids, mask = ltg_padded(ltg_sequences([45, 7]))
    expected = {"ids": ids, "mask": mask}
    arguments = []
    for auto, kind in KINDS.items():
        model = ltg_model(kind, relative_qk_layout="interleaved")
        with quiet(), torch.no_grad():
            model.save_pretrained(tmp_path / auto)
            expected[auto] = model(ids, mask)[0]
        arguments += [auto, str(tmp_path / auto)]
    torch.save(expected, tmp_path / "expected.pt")
    assert sorted(p.name for p in (tmp_path / "AutoModel").glob("*.py")) == [
        "configuration_ltg_bert.py",
        "layers_ltg_bert.py",
        "losses_ltg_bert.py",
        "modeling_ltg_bert.py",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", STRANGER, str(tmp_path / "expected.pt"), *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_with_tinyhat_its_own_class_answers(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    with quiet():
        ltg_model().save_pretrained(tmp_path)
        assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path)) is LtgBertForSequenceClassification


@pytest.mark.parametrize("times", [1, 2])
def test_registering_again_changes_nothing(times: int) -> None:
    import importlib

    import tinyhat.encoder.ltg_bert as package

    for _ in range(times):
        importlib.reload(package)
