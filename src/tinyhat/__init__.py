"""tinyhat puts a classifier on any pretrained transformer encoder and carries it to production."""

from __future__ import annotations

__version__ = "0.1.0"
