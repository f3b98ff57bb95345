"""The one exception a user can cause: said in one sentence, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: what is wrong, where, and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """Return the error for an optional `package` that is not installed, naming the `extra` that brings it."""
    return UserError(f"{purpose} needs the package '{package}', which is not installed: pip install 'tinyhat[{extra}]'")
