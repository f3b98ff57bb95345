"""Memory that does not grow with the number of documents: packs of ever new sizes make libraries keep more and more."""

from __future__ import annotations

import ctypes
import os

KERNELS = "64"  # of each kind; oneDNN and torch keep 1,024 by themselves


def keep_few_kernels() -> None:
    """Limit the caches of kernels by shape, where this process has not used them yet; the user's own setting wins.

    MiniLM and short documents, resident after 41 parts: 624 MiB with 64, 791 with 256, the same time.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, KERNELS)


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc keeps what lies between blocks in use)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
