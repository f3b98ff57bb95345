"""Documents as token ids in one small file, for machines without the texts, the tokenizer or a network.

The file is a NumPy ``.npz`` under LZMA: per split `NAME.ids` (uint16), `NAME.lengths`, `NAME.labels` and
`NAME.label_counts` (int32), `width`, the number of labels, and `tokenizer`, the hash of the tokenizer whose ids they
are. 12,000 EURLEX57K laws of 446 tokens take 2.2 MB.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tokenizers import Tokenizer

from tinyhat.data.reading import Reading
from tinyhat.errors import UserError
from tinyhat.run import write_bytes
from tinyhat.types import IntArray, Targets

Splits = dict[str, tuple[Reading, Targets]]


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the sha256 of a tokenizer's entries with their ids, as hex."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def save_tokens(path: Path, splits: Splits, tokenizer: str) -> None:
    """Write multi-label splits to `path`.

    Args:
        path: the file.
        splits: their token ids and labels.
        tokenizer: the hash of the tokenizer whose ids they are.

    Raises:
        UserError: a token id does not fit into 16 bits, or documents are pairs.
    """
    arrays: dict[str, Any] = {"tokenizer": np.array(tokenizer)}
    for name, (reading, targets) in splits.items():
        if reading.input_ids.max(initial=0) >= 1 << 16 or reading.token_type_ids is not None:
            raise UserError(f"{path}: token ids above 65,535, and pairs, do not fit into a file of tokens")
        assert targets.indptr is not None
        arrays |= {
            f"{name}.ids": reading.input_ids.astype(np.uint16),
            f"{name}.lengths": reading.lengths.astype(np.int32),
            f"{name}.labels": targets.values.astype(np.int32),
            f"{name}.label_counts": np.diff(targets.indptr).astype(np.int32),
            "width": np.int64(targets.width),
        }
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    write_bytes(path, lzma.compress(stream.getvalue(), preset=6))


def load_tokens(path: Path, tokenizer: str | None = None) -> Splits:
    """Read what `save_tokens` wrote.

    Args:
        path: the file.
        tokenizer: the hash of the tokenizer whose ids they must be; None: any, for models that know no words.

    Raises:
        UserError: the file is missing, is no file of tokens, or has another tokenizer's ids.
    """
    try:
        with np.load(io.BytesIO(lzma.decompress(path.read_bytes())), allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        wrote = str(held.pop("tokenizer", ""))
        names = [key.removesuffix(".ids") for key in held if key.endswith(".ids")]
        splits = {name: _split(held, name) for name in names}
    except FileNotFoundError:
        raise UserError(f"--tokens {path} does not exist: write it with benchmarks/tokens.py") from None
    except (OSError, lzma.LZMAError, ValueError, KeyError, EOFError, BadZipFile):
        raise UserError(f"--tokens {path} is no file of tokens: write it again with benchmarks/tokens.py") from None
    if tokenizer not in (None, wrote):
        raise UserError(
            f"--tokens {path} holds the ids of another tokenizer than the model's: write it with benchmarks/tokens.py "
            "--model MODEL"
        )
    return splits


def _split(held: dict[str, Any], name: str) -> tuple[Reading, Targets]:
    lengths = held[f"{name}.lengths"].astype(np.int64)
    reading = Reading(held[f"{name}.ids"].astype(np.int32), _ends(lengths), lengths, lengths)
    labels = held[f"{name}.labels"].astype(np.int64)
    return reading, Targets("multi", int(held["width"]), labels, _ends(held[f"{name}.label_counts"]))


def _ends(counts: Any) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
