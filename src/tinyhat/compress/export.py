"""`tinyhat export`: a model in another library's form, refused unless it gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyhat.embed.choice import Pooling
from tinyhat.embed.embedder import load_embedder
from tinyhat.errors import UserError, did_you_mean

Say = Callable[[str], None]
FORMS = ("sentence-transformers",)


def export(
    model: str | Path,
    out: str | Path,
    to: str = "sentence-transformers",
    layers: str = "last",
    pooling: Pooling | None = None,
    normalize: bool = False,
    max_tokens: int | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Export a model: ``tinyhat.export("runs/laws", "laws-st", "sentence-transformers")``.

    Args:
        model: a run, a folder, a hub name, or ``minilm``.
        out: new or empty folder; it appears when complete and checked.
        to: the form, one of `FORMS`.
        layers: one layer, or ``best:FOLDER`` of `tinyhat layers`.
        pooling: mean, max, cls, last, mean_sqrt or weighted; None is the one `best` chose, else mean.
        normalize: vectors of length 1.
        max_tokens: where longer documents are cut (in the other library there are no windows).
        say: where remarks go.

    Returns:
        What was checked: ``texts``, and ``largest_difference`` of their vectors relative to the largest value.

    Raises:
        UserError: no such form, a choice that it cannot express, or vectors that differ.
    """
    from tinyhat.compress.sentence_transformers import write_sentence_transformers

    if to not in FORMS:
        raise UserError(f"--to {to}: models are exported to {', '.join(FORMS)}{did_you_mean(to, FORMS)}")
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} is there already and not empty: name a new folder")
    embedder = load_embedder(
        model, layers=layers, pooling=pooling, normalize=normalize, max_tokens=max_tokens, long="truncate", plan="fp32"
    )
    checked = write_sentence_transformers(embedder, folder)
    say(
        f"exported to {folder}: the vectors of {checked['texts']} texts agree to {checked['largest_difference']:.1e} "
        f"of their largest value; documents over {embedder.max_tokens} tokens are cut there, not read in windows"
    )
    return checked
