"""Vectors in fewer bytes: float16, int8 with a calibration that is kept, or one bit a dimension."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tinyhat.types import FloatArray

StoreType = Literal["float32", "float16", "int8", "binary"]
STORE_TYPES = get_args(StoreType)


def calibrate(blocks: Iterable[FloatArray]) -> dict[str, list[float]]:
    """Return the int8 calibration of all vectors: ``low`` and ``step`` of every dimension.

    A value x is stored as round((x - low) / step) - 128, step being a 255th of the dimension's range, so it comes back
    within half a step (the scalar quantisation of sentence-transformers, with rounding where that cuts off).

    Args:
        blocks: float32 [n, D] each.
    """
    low: FloatArray | None = None
    high: FloatArray | None = None
    for block in blocks:
        if len(block):
            low = block.min(axis=0) if low is None else np.minimum(low, block.min(axis=0))
            high = block.max(axis=0) if high is None else np.maximum(high, block.max(axis=0))
    if low is None or high is None:
        return {"low": [], "step": []}
    step = (high - low) / np.float32(255)
    step[step == 0] = 1  # a dimension that never changes
    return {"low": low.tolist(), "step": step.tolist()}


def encode(vectors: FloatArray, dtype: StoreType, calibration: Mapping[str, Any] | None = None) -> npt.NDArray[Any]:
    """Return vectors as they are stored: [n, D] of `dtype`, or for binary uint8 [n, ceil(D / 8)], most significant
    bit first, 1 where the value is above 0.

    Args:
        vectors: float32 [n, D].
        dtype: the form.
        calibration: of `calibrate`, for int8.
    """
    if dtype == "int8":
        assert calibration is not None
        low, step = (np.asarray(calibration[key], np.float32) for key in ("low", "step"))
        return (np.clip(np.rint((vectors - low) / step), 0, 255) - 128).astype(np.int8)
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    return np.ascontiguousarray(vectors, dtype=np.dtype(dtype))


def decode(stored: npt.NDArray[Any], manifest: Mapping[str, Any]) -> FloatArray:
    """Return stored rows as float32 [n, D]; binary becomes -1 and 1.

    Args:
        stored: rows of a store.
        manifest: of that store (``dtype``, ``width``, ``calibration``).
    """
    if manifest["dtype"] == "int8":
        low, step = (np.asarray(manifest["calibration"][key], np.float32) for key in ("low", "step"))
        return (stored.astype(np.float32) + 128) * step + low
    if manifest["dtype"] == "binary":
        bits = np.unpackbits(stored, axis=1, count=int(manifest["width"]))
        return bits.astype(np.float32) * 2 - 1
    return np.asarray(stored, np.float32)


def stored_columns(width: int, dtype: StoreType) -> int:
    """Return the columns of a stored row for vectors of `width` dimensions."""
    return -(-width // 8) if dtype == "binary" else width


def stored_dtype(dtype: StoreType) -> np.dtype[Any]:
    """Return the numpy type of stored numbers."""
    return np.dtype(np.uint8) if dtype == "binary" else np.dtype(dtype)
