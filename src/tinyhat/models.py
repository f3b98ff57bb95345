"""`tinyhat.load`: a run predicts, an encoder embeds. `tinyhat.embed`: the verb, for files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyhat.predict import Classifier, text_columns
from tinyhat.predict import load as load_run

if TYPE_CHECKING:
    from tinyhat.embed.embedder import Embedder


def _quiet(_: str) -> None:
    pass


def load(model: str | Path, plan: str | None = None, **settings: Any) -> Classifier | Embedder:
    """Load a run, ``tinyhat.load("runs/laws").predict(texts)``, or an encoder, ``tinyhat.load("minilm").embed(texts)``.

    Args:
        model: the folder of a run or its model (a classifier with its decision), else an encoder: a folder with a
            checkpoint, a hub name, or ``minilm``.
        plan: a numeric plan; None is the one the thresholds were tuned in, or auto for an encoder.
        settings: of an encoder's `tinyhat.embed.embedder.Embedder` (layers, pooling, ...).

    Raises:
        UserError: nothing there, or what is there does not belong together.
    """
    folder = Path(model)
    decided = any((place / "decision.json").is_file() for place in (folder, folder / "model"))
    checkpoint = (folder / "config.json").is_file()
    named = not folder.exists() and not str(model).startswith((".", "/", "~")) and str(model).count("/") <= 1
    if decided or not (checkpoint or named):
        return load_run(model, plan)
    from tinyhat.embed.embedder import load_embedder

    return load_embedder(model, plan=plan or "auto", **settings)


def embed(
    model: str | Path,
    source: str | Path,
    to: str | Path | Sequence[str | Path],
    columns: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = _quiet,
    **settings: Any,
) -> dict[str, Any]:
    """Embed every document of a file: ``tinyhat.embed("minilm", "laws.csv", "laws.npy", pooling="cls")``.

    Args:
        model: a run, a folder with a checkpoint, a hub name, or ``minilm``.
        source: csv, tsv, jsonl, parquet or txt file.
        to: where, one or several; the format follows from the name.
        columns: text and id columns where they cannot be detected.
        say: where progress goes.
        settings: as in `tinyhat.embed.write.embed_file` and `tinyhat.embed.embedder.Embedder`, named as the flags.

    Returns:
        The manifest of the (first) store; ``tinyhat.embed.store.read_store`` reads it back.

    Raises:
        UserError: whatever is wrong with the input, the settings or the outputs, in one sentence.
    """
    from tinyhat.embed.write import embed_file

    outs = [to] if isinstance(to, str | Path) else list(to)
    data = text_columns(Path(model), columns or {})
    return embed_file(model, str(source), outs, data, say=say, **settings)
