"""An encoder with local attention keeps its window in every plan."""

from __future__ import annotations

import json
import shutil

import numpy as np

from tinyhat.embed.embedder import load_embedder
from tinyhat.embed.fast import _is_known
from tinyhat.encoder.long import LOCAL


def test_the_fast_layers_leave_local_attention_to_the_others(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "local")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {LOCAL: 4}))
    text = "law court market fish tax trade milk ship union state rule year " * 4
    low, exact = (load_embedder(folder, plan=plan, layers="1") for plan in ("amp_bf16", "fp32"))
    assert not _is_known(low.encoder)
    assert _is_known(load_embedder(bert).encoder)
    local, whole = exact.embed([text]), load_embedder(bert, plan="fp32", layers="1").embed([text])
    assert np.linalg.norm(low.embed([text]) - local) < 0.2 * np.linalg.norm(whole - local)
