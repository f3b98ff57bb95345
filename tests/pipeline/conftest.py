"""Models here are tiny: more than one thread only adds waiting."""

from __future__ import annotations

from tests.tiny.threads import one_thread  # noqa: F401 -- a fixture of this package
