"""The demo: the main job on the docstrings of the installed libraries, offline, in a few minutes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tinyhat.config import build_config
from tinyhat.data.read import read_dataset
from tinyhat.pipeline import train_dataset
from tinyhat.predict import load
from tinyhat.run import read_json
from tinyhat.types import Document

Say = Callable[[str], None]
SETTINGS = {
    "data.path": "pydocs",
    "data.limit": 3000,
    "encoder.model": "minilm",
    "reading.max_tokens": 128,
    "train.epochs": 3,
    "train.learning_rate": 3e-4,
}
SHOWN = 3  # documents predicted at the end


def demo(out: Path, say: Say) -> None:
    """Build pydocs, train minilm beside the baseline, tune, evaluate, report, and predict three documents.

    Args:
        out: the run folder; a demo run that is there already is used again for the predictions.
        say: where remarks go; results go to stdout.
    """
    from tinyhat.cli.show import metrics_table

    config = build_config(None, SETTINGS)
    dataset = read_dataset(config.data, config.train.seed)
    done = (out / "report.html").exists()
    if done:
        say(f"demo: {out} is there already; its classifier is used (remove the folder to train again)")
    run = out if done else train_dataset(config, dataset, out, resume=(out / "manifest.json").exists(), say=say).path
    metrics_table(read_json(run / "metrics.json"))
    split = dataset.splits["test" if "test" in dataset.splits else "dev"]
    documents = [Document(i, text) for i, text in zip(split.ids[:SHOWN], split.texts[:SHOWN], strict=True)]
    for document, result in zip(documents, load(run).results(documents), strict=True):
        say(f"\n{document.text[:200].strip()} ...")
        print(json.dumps(result, ensure_ascii=False))
    say(f"\nreport: {run / 'report.html'}\nyour own documents: tinyhat train my.csv --out runs/mine")
