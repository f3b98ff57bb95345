"""Memory: kernels are limited before they are used, the user's own limit wins, and freed memory goes back."""

from __future__ import annotations

import os

from tinyhat.embed.embedder import load_embedder
from tinyhat.embed.memory import KERNELS, give_back


def test_kernel_caches_are_limited_unless_the_user_said_otherwise(bert, monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    load_embedder(bert)
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == KERNELS
    give_back()
