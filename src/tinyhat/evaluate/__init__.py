"""Measuring from saved scores, and the linear model. Called, the package is the verb: ``tinyhat.evaluate(run)``."""

from __future__ import annotations

from tinyhat.verb import make_callable

make_callable(__name__, "evaluate")
