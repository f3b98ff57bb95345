"""What a model took over from a checkpoint, weight by weight, and what starts fresh."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from tinyhat.errors import UserError

HEADS = ("lm_head.", "head.", "classifier.")  # what a checkpoint may have beside the body
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Transfer:
    """Names of weights: `carried` came from the checkpoint, `fresh` start anew, `left` stayed in the checkpoint."""

    carried: dict[str, tuple[int, ...]]
    fresh: dict[str, tuple[int, ...]]
    left: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report, one line for every weight; the same weight of all layers is one line."""
        found = []
        for verb, names in (("carried over", self.carried), ("starts fresh", self.fresh)):
            shapes = {pattern: names[keys[0]] for pattern, keys in _by_layer(names).items()}
            found += [f"{verb}: {pattern} {list(shape)}" for pattern, shape in shapes.items()]
        return found + [f"left behind: {pattern}" for pattern in _by_layer(self.left)]


def check_transfer(name: str, model: PreTrainedModel, report: Mapping[str, Any], fresh_head: bool) -> Transfer:
    """Read transformers' loading report as a transfer, and refuse a checkpoint whose body is another.

    Args:
        name: of the checkpoint, for messages.
        model: an LTG-BERT, loaded with ``output_loading_info=True``.
        report: the loading info.
        fresh_head: weights outside the body start fresh even where the checkpoint had them.

    Raises:
        UserError: the checkpoint lacks weights of the body, has them in other shapes, or has foreign ones.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    missing = set(report["missing_keys"])
    mismatched = {str(key): (tuple(theirs), tuple(ours)) for key, theirs, ours in report["mismatched_keys"]}
    for key, (theirs, ours) in sorted(mismatched.items()):
        if key.startswith(prefix):
            raise UserError(f"{name}: {key} has the shape {list(theirs)} and its config asks for {list(ours)}")
    lacking = sorted(key for key in missing if key.startswith(prefix))
    if lacking:
        raise UserError(f"{name} is no LTG-BERT, or not a whole one: {_some(lacking)} not in it")
    left = tuple(sorted(report["unexpected_keys"]))
    foreign = [key for key in left if not key.startswith(HEADS)]
    if foreign:
        raise UserError(f"{name} has weights that LTG-BERT has no place for: {_some(foreign)}")
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}  # a tied weight once
    new = {k for k in shapes if k in missing or k in mismatched or (fresh_head and not k.startswith(prefix))}
    return Transfer(
        {k: s for k, s in shapes.items() if k not in new}, {k: s for k, s in shapes.items() if k in new}, left
    )


def _by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of equal weights of different layers under ``layers.{first-last}``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_LAYER.sub(".layers.*.", name), []).append(name)
    found = {}
    for pattern, keys in groups.items():
        numbers = sorted(int(match[1]) for key in keys if (match := _LAYER.search(key)))
        span = f"{{{numbers[0]}-{numbers[-1]}}}" if len(numbers) > 1 else "".join(map(str, numbers))
        found[pattern.replace(".layers.*.", f".layers.{span}.")] = keys
    return found


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{', '.join(keys[:3])}{more} {'is' if len(keys) == 1 else 'are'}"
