"""Memory that does not grow with the number of documents: packs of ever new sizes make libraries keep more and more."""

from __future__ import annotations

import ctypes
import os
from typing import Any

KERNELS = "16"  # of each kind; oneDNN and torch keep 1,024 by themselves
ARENAS = 2  # heaps that threads share; glibc makes eight a core, each with holes of its own
_M_ARENA_MAX = -8  # malloc.h


def bound_memory() -> None:
    """Limit kernel caches by shape and heaps, where this process has not used them yet; the user's settings win.

    MiniLM and short documents, resident after 41 parts: 580 MiB with 16 kernels, 624 with 64, 791 with 256, all in the
    same time.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, KERNELS)
    if "MALLOC_ARENA_MAX" not in os.environ and (set_option := _c_function("mallopt")) is not None:
        set_option(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc keeps what lies between blocks in use)."""
    if (trim := _c_function("malloc_trim")) is not None:
        trim(0)


def _c_function(name: str) -> Any:
    """Return a function of the C library, or None where it has none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):
        return None
