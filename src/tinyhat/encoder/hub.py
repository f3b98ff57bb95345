"""Whether the Hugging Face hub can be asked at all; where it cannot, what is on this machine."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from tinyhat.errors import UserError, did_you_mean

SECONDS = 5.0  # a hub that takes longer to open a connection is as good as none
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a checkpoint: no other library's weights
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def hub_source(name: str) -> str | Path:
    """Return `name` where the hub answers, else the folder in which an earlier download of it lies.

    The hub's own client tries a dead network for half a minute before it says so; one connection says it at once.

    Raises:
        UserError: the hub cannot be reached and `name` is not on this machine.
    """
    if hub_answers():
        return name
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise UserError(
            f"encoder.model = {name!r} is not on this machine and the Hugging Face hub cannot be reached: "
            f"check the network or give a folder, or minilm{did_you_mean(name, ['minilm', 'linear'])}"
        ) from None


def hub_folder(name: str) -> Path:
    """Return the folder in which a model of the hub lies on this machine, downloaded now if need be.

    Raises:
        UserError: as `hub_source`; the hub has no such model.
    """
    source = hub_source(name)
    if isinstance(source, Path):
        return source
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"encoder.model = {name!r} cannot be downloaded: {reason}") from None


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Whether a connection to the hub opens; asked once a process. Behind a proxy its client has to find out."""
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(variable) for variable in PROXIES):
        return True
    parts = urlsplit(constants.ENDPOINT)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), SECONDS).close()
    except OSError:
        return False
    return True
