"""Windows of token ids: `context` tokens and the one that follows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyhat.errors import UserError

PREPARE = "experiments/language_modeling/prepare_data.py"


@dataclass(frozen=True)
class Data:
    """Train and validation windows, int64 [N, context + 1], of a vocabulary."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    vocabulary: int


def load(folder: Path, context: int, limit: int | None) -> Data:
    """Cut what prepare_data.py wrote into windows that do not overlap but for the token predicted last.

    Raises:
        UserError: it is not there, is damaged, or holds less than a window.
    """
    try:
        parts = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("train", "validation")]
        vocabulary = int(json.loads((folder / "meta.json").read_text())["vocabulary"])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--data {folder} holds no tokens: write them with {PREPARE}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        raise UserError(f"--data {folder} is damaged: write it again with {PREPARE}") from None
    if any(part.ndim != 1 or part.dtype != np.uint16 for part in parts):
        raise UserError(f"--data {folder} does not hold token ids of 16 bits: write it again with {PREPARE}")
    train, validation = (_windows(part, context, limit) for part in parts)
    if not len(train) or not len(validation):
        raise UserError(f"--data {folder} holds less than one window of {context} tokens: lower --context")
    highest = int(max(train.max(), validation.max()))
    if highest >= vocabulary:
        raise UserError(
            f"--data {folder} has token {highest} and a vocabulary of {vocabulary}: write it again with {PREPARE}"
        )
    return Data(train, validation, vocabulary)


def fingerprint(data: Data) -> str:
    """Return a short hash of all windows: whether two runs read the same text."""
    digest = hashlib.sha256(str(data.vocabulary).encode())
    for windows in (data.train, data.validation):
        digest.update(np.ascontiguousarray(windows).tobytes())
    return digest.hexdigest()[:8]


def _windows(tokens: npt.NDArray[np.uint16], context: int, limit: int | None) -> npt.NDArray[np.int64]:
    count = (len(tokens) - 1) // context
    count = min(count, limit or count)
    starts = np.arange(count)[:, None] * context
    return np.asarray(tokens)[starts + np.arange(context + 1)].astype(np.int64)
