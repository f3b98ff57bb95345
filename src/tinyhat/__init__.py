"""tinyhat puts a classifier on any pretrained transformer encoder and carries it to production.

    import tinyhat

    run = tinyhat.train("laws.csv", "runs/laws", {"train.epochs": 2})
    tinyhat.load("runs/laws").predict(["The Commission hereby adopts ..."])

The verbs of the command line (check, train, tune, evaluate, predict, pretrain, embed, layers, search, export, demo) are
functions here. Importing tinyhat imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tinyhat.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "TinyhatClassifier",
    "UserError",
    "arena",
    "check",
    "demo",
    "embed",
    "evaluate",
    "export",
    "find_rate",
    "layers",
    "load",
    "predict",
    "pretrain",
    "search",
    "sweep",
    "train",
    "tune",
]

_HOMES = {
    "Classifier": "tinyhat.predict",
    "check": "tinyhat.verbs",
    "export": "tinyhat.compress.export",
    "find_rate": "tinyhat.verbs",
    "layers": "tinyhat.embed.layers",
    "load": "tinyhat.models",
    "search": "tinyhat.embed.search",
    "TinyhatClassifier": "tinyhat.estimator",
}
_VERBS = ("train", "tune", "evaluate", "predict", "pretrain", "embed", "demo", "sweep", "arena")


def __getattr__(name: str) -> Any:
    """Import public names when they are first used."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _VERBS:
        return import_module(f"tinyhat.{name}")
    raise AttributeError(f"module 'tinyhat' has no attribute {name!r}")
