"""Which hidden states make a vector: one layer, a range, all of them mixed by weights, or what a classifier sees."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tinyhat.errors import UserError, did_you_mean
from tinyhat.run import read_json

Pooling = Literal["mean", "max", "cls", "last", "mean_sqrt", "weighted"]
WordPooling = Literal["first", "last", "mean", "max"]
Combine = Literal["mean", "concat"]
POOLINGS, WORD_POOLINGS = get_args(Pooling), get_args(WordPooling)
NAMES = ("last", "first", "middle", "all", "best", "pooled")
CHOICE_FILE = "layers.json"
"""What `tinyhat layers` leaves in its folder: {"layers": str, "pooling": str}; optionally "combine", "weights", and
what it was chosen with: "model_sha256" and "max_tokens"."""


@dataclass(frozen=True)
class Layers:
    """A choice of hidden states, resolved for one model.

    Attributes:
        name: as the user said it.
        indices: places in ``hidden_states`` (0 is the embedding output); empty for the pooled vector.
        combine: mean (weighted by `weights`) or concatenation over the indices.
        weights: one a layer, adding up to 1 (a scalar mix, Peters et al. 2018, equation 1), or None for equal ones.
    """

    name: str
    indices: tuple[int, ...]
    combine: Combine = "mean"
    weights: tuple[float, ...] | None = None

    @property
    def pooled(self) -> bool:
        """True for the vector that the last linear layer of a classifier sees."""
        return not self.indices

    def width(self, hidden: int) -> int:
        """Return D of the vectors, for hidden states of width `hidden`."""
        return hidden * len(self.indices) if self.combine == "concat" and self.indices else hidden

    def facts(self) -> dict[str, Any]:
        """Return the choice for a manifest."""
        return asdict(self)


def choose_layers(name: str, count: int, combine: Combine = "mean", weights: tuple[float, ...] | None = None) -> Layers:
    """Resolve `name` for a model of `count` layers, whose hidden states are numbered 0 (embeddings) to `count`.

    Args:
        name: last, first (the first layer's output), middle, all (embedding output included), pooled, a number (-1 is
            the last) or a range as Python slices it (``-4:``).
        count: layers of the model.
        combine: what is done with more than one.
        weights: of a scalar mix, one for each chosen layer.

    Raises:
        UserError: no such choice, or layers the model does not have.
    """
    if name == "pooled":
        return Layers(name, ())
    known = {"last": (count,), "first": (min(1, count),), "middle": ((count + 1) // 2,), "all": tuple(range(count + 1))}
    indices = known.get(name)
    if indices is None and re.fullmatch(r"-?\d+", name):
        number = int(name)
        if not -count - 1 <= number <= count:
            raise UserError(f"--layers {name}: the model has {count} layers (0, the embedding output, to {count})")
        indices = (number % (count + 1),)
    if indices is None and (found := re.fullmatch(r"(-?\d+)?:(-?\d+)?", name)):
        begin, end = (int(part) if part else None for part in found.groups())
        indices = tuple(range(count + 1))[begin:end]
        if not indices:
            raise UserError(f"--layers {name} chooses none of the hidden states 0 to {count}")
    if indices is None:
        hint = did_you_mean(name, NAMES)
        raise UserError(f"--layers {name!r}: give {', '.join(NAMES)}, a number or a range such as -4:{hint}")
    if weights is not None and len(weights) != len(indices):
        raise UserError(f"--layers {name}: {len(weights)} weights for {len(indices)} hidden states; they do not belong")
    return Layers(name, indices, combine, weights)


def read_choice(folder: Path) -> Mapping[str, Any]:
    """Return what `tinyhat layers` chose: layers, pooling, and where given combine and weights.

    Args:
        folder: the folder it wrote, or the file layers.json itself.

    Raises:
        UserError: there is no choice there, or it is damaged.
    """
    path = folder / CHOICE_FILE if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(
            f"--layers best: there is no {CHOICE_FILE} in {folder}; run 'tinyhat layers MODEL DATA --out FOLDER' and "
            "say --layers best:FOLDER"
        )
    found = read_json(path)
    problem = None
    if not isinstance(found, dict) or not isinstance(found.get("layers"), str) or found.get("pooling") not in POOLINGS:
        problem = "it lacks layers or a known pooling"
    elif found.get("combine", "mean") not in get_args(Combine):
        problem = f"its combine is none of {', '.join(get_args(Combine))}"
    elif not _numbers(found.get("weights")):
        problem = "its weights are no list of numbers"
    elif not isinstance(found.get("max_tokens"), int | None):
        problem = "its max_tokens is no whole number"
    if problem:
        raise UserError(f"{path} is damaged: {problem}; run 'tinyhat layers' again")
    return found


def _numbers(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(x, int | float) for x in value))


def check_pooling(name: str, words: bool) -> None:
    """Raise a UserError where `name` is no pooling of documents (of a word's pieces, with `words`)."""
    known = WORD_POOLINGS if words else POOLINGS
    if name not in known:
        of = "a word's pieces" if words else "a document's tokens"
        raise UserError(f"--pooling {name} is no pooling of {of}: give {', '.join(known)}{did_you_mean(name, known)}")
