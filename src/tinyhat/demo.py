"""The demo: the main job on the docstrings of the installed libraries, offline, in a few minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyhat.config import build_config
from tinyhat.data.read import read_dataset
from tinyhat.pipeline import train_dataset
from tinyhat.predict import load
from tinyhat.run import Run
from tinyhat.types import Document
from tinyhat.verb import make_callable

make_callable(__name__, "demo")

Say = Callable[[str], None]
SETTINGS = {
    "data.path": "pydocs",
    "data.limit": 2400,
    "encoder.model": "minilm",
    "reading.max_tokens": 128,
    "train.epochs": 2,
    "train.batch_size": 8,  # few documents: small batches are many steps
    "train.learning_rate": 3e-4,
}
SHOWN = 3  # documents predicted at the end


def demo(out: Path, say: Say) -> tuple[Run, list[tuple[str, dict[str, Any]]]]:
    """Build pydocs, train minilm beside the baseline, tune, evaluate, report, and predict three documents.

    Args:
        out: the run folder; a finished demo that is there already is used again, a stopped one is resumed.
        say: where remarks go.

    Returns:
        The run, and per predicted document its text and its result.
    """
    config = build_config(None, SETTINGS)
    dataset = read_dataset(config.data, config.train.seed)
    run = Run(out)
    if run.report.exists():
        say(f"demo: {out} is finished already; its classifier is used (remove the folder to train again)")
    else:
        train_dataset(config, dataset, out, resume=run.manifest.exists(), say=say)
    split = dataset.splits["test" if "test" in dataset.splits else "dev"]
    documents = [Document(i, text) for i, text in zip(split.ids[:SHOWN], split.texts[:SHOWN], strict=True)]
    results = load(out).results(documents)
    return run, [(document.text, result) for document, result in zip(documents, results, strict=True)]
