"""Known corpora: names that can stand where a path stands."""

from __future__ import annotations

from importlib import import_module

from tinyhat.config import DataConfig
from tinyhat.data.raw import RawDataset

CORPORA = ("eurlex57k", "pydocs")
TEXT_COLUMNS = {"eurlex57k": ("header", "recitals", "main_body")}
"""Where the text of a corpus is in a file of its original rows, joined as the corpus reader joins it."""


def read_corpus(config: DataConfig) -> RawDataset:
    """Read the corpus that ``config.path`` names; each is a module of this folder with a function ``read``.

    Raises:
        UserError: as the corpus has it.
    """
    raw: RawDataset = import_module(f"tinyhat.data.corpora.{config.path}").read(config)
    return raw
