"""Several processes, one run: torchrun starts them, all compute, and rank 0 alone measures and writes."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=7)
"""How long ranks wait for the first, which reads and hashes for hours alone; torchrun ends them when one has died."""


def world_size() -> int:
    """Return how many processes train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    return rank() == 0


def wait() -> None:
    """Return when all ranks have come here; at once in a single process."""
    if world_size() > 1:
        _state().wait_for_everyone()


def shared(value: Any) -> Any:
    """Return rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    return broadcast_object_list([value])[0]


def leave() -> None:
    """Take leave of the other ranks: nothing is computed together after this."""
    if world_size() > 1:
        _state().destroy_process_group()


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
