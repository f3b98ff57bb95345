"""A tiny BERT whose embedder is made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.tiny.models import save_tiny


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """The folder of a tiny BERT classifier: 2 layers, 32 wide, 64 positions."""
    return save_tiny(tmp_path_factory.mktemp("embed") / "bert", "bert")
