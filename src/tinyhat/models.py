"""`tinyhat.load`: a run predicts, an encoder embeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyhat.predict import Classifier
from tinyhat.predict import load as load_run

if TYPE_CHECKING:
    from tinyhat.embed.embedder import Embedder


def load(model: str | Path, plan: str | None = None, **settings: Any) -> Classifier | Embedder:
    """Load a run, ``tinyhat.load("runs/laws").predict(texts)``, or an encoder, ``tinyhat.load("minilm").embed(texts)``.

    Args:
        model: the folder of a run or its model (a classifier with its decision), else an encoder: a folder with a
            checkpoint, a hub name, or ``minilm``.
        plan: a numeric plan; None is the one the thresholds were tuned in, or auto for an encoder.
        settings: of `tinyhat.embed.embedder.Embedder` (layers, pooling, ...); with any of them a run embeds too.

    Raises:
        UserError: nothing there, or what is there does not belong together.
    """
    folder = Path(model)
    decided = any((place / "decision.json").is_file() for place in (folder, folder / "model"))
    checkpoint = (folder / "config.json").is_file()
    named = not folder.exists() and not str(model).startswith((".", "/", "~")) and str(model).count("/") <= 1
    if not settings and (decided or not (checkpoint or named)):
        return load_run(model, plan)
    from tinyhat.embed.embedder import load_embedder

    return load_embedder(model, plan=plan or "auto", **settings)
