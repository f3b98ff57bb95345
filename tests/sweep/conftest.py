"""Models here are tiny: more than one thread only adds waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
