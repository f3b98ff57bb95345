"""Saved scores: one safetensors file per split with logits, targets and document ids.

With them tune, evaluate and report can be run again without the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from tinyhat.errors import UserError
from tinyhat.run import atomic_path
from tinyhat.types import Scores, Targets, Task

FORMAT = "tinyhat.scores.1"


def write_scores(folder: Path, split: str, scores: Scores) -> Path:
    """Write `scores` to ``folder/SPLIT.safetensors`` atomically and return that path.

    The file holds: logits float32 [N, L]; ids, the UTF-8 bytes of a JSON list; values and indptr, the targets as
    `Targets` has them (absent where there are none); the header names format, task, width and plan.

    Raises:
        ValueError: ids, logits and targets differ in length.
    """
    from safetensors.numpy import save_file

    logits = np.ascontiguousarray(scores.logits, dtype=np.float32)
    if logits.ndim != 2 or len(scores.ids) != len(logits):
        raise ValueError(f"{len(scores.ids)} ids do not fit logits of shape {logits.shape}")
    tensors: dict[str, npt.NDArray[Any]] = {
        "logits": logits,
        "ids": np.frombuffer(json.dumps(list(scores.ids)).encode(), dtype=np.uint8),
    }
    header = {"format": FORMAT, "plan": scores.plan}
    if scores.targets is not None:
        if len(scores.targets) != len(logits):
            raise ValueError(f"{len(scores.targets)} targets do not fit logits of shape {logits.shape}")
        header |= {"task": scores.targets.task, "width": str(scores.targets.width)}
        tensors["values"] = np.ascontiguousarray(scores.targets.values)
        if scores.targets.indptr is not None:
            tensors["indptr"] = np.ascontiguousarray(scores.targets.indptr)
    path = _path(folder, split)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)
    return path


def read_scores(folder: Path, split: str) -> Scores:
    """Read what `write_scores` wrote.

    Raises:
        UserError: there are no scores of that split (with the splits there are), or the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = _path(folder, split)
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise UserError(f"there are no saved scores of split '{split}' in {folder} (there: {there})")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return _assemble(header, tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"the scores in {path} are damaged ({error}): compute them again with 'tinyhat evaluate --data'"
        ) from None


def _assemble(header: Mapping[str, str], tensors: Mapping[str, Any]) -> Scores:
    """Put the parts together; ValueError or KeyError where they do not fit."""
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r} instead of {FORMAT!r}")
    logits, ids = tensors["logits"], json.loads(tensors["ids"].tobytes())
    if logits.dtype != np.float32 or logits.ndim != 2 or len(ids) != len(logits):
        raise ValueError(f"{len(ids)} ids for logits {logits.dtype} {logits.shape}")
    targets = None
    if "task" in header:
        if header["task"] not in get_args(Task):
            raise ValueError(f"unknown task {header['task']!r}")
        targets = Targets(cast(Task, header["task"]), int(header["width"]), tensors["values"], tensors.get("indptr"))
        _check(targets, logits.shape)
    return Scores(ids, logits, targets, header["plan"])


def _check(targets: Targets, shape: tuple[int, int]) -> None:
    """Raise ValueError where targets cannot belong to logits of `shape`."""
    values, indptr = targets.values, targets.indptr
    if (len(targets), targets.width) != shape or (targets.task == "multi") != (indptr is not None):
        raise ValueError(f"{targets.task} targets of {len(targets)} x {targets.width} for logits of shape {shape}")
    if indptr is not None and (indptr[0] != 0 or indptr[-1] != len(values) or (np.diff(indptr) < 0).any()):
        raise ValueError("row boundaries of the targets out of order")
    if targets.task != "regression" and len(values) and (values.min() < -1 or values.max() >= targets.width):
        raise ValueError("a label index outside the label list")


def _path(folder: Path, split: str) -> Path:
    return folder / f"{split}.safetensors"
