"""From scores to a decision rule. Called, the package is the verb: ``tinyhat.tune(run)``."""

from __future__ import annotations

from tinyhat.verb import make_callable

make_callable(__name__, "tune")
