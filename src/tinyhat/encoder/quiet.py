"""Loading without transformers' reports and bars: what matters of them is said by tinyhat."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' load reports and its progress bars."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    hub = logging.getLogger("huggingface_hub")  # it tells of every retry
    hub_level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
