"""A tiny BERT whose embedder is made once."""

from __future__ import annotations

import pytest
from tests.tiny.models import save_tiny
from tests.tiny.threads import one_thread  # noqa: F401 -- a fixture of this package


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """The folder of a tiny BERT classifier: 2 layers, 32 wide, 64 positions."""
    return save_tiny(tmp_path_factory.mktemp("embed") / "bert", "bert")
