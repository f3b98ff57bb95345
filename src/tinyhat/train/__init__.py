"""The one training loop, with exact resume. Called, the package is the verb: ``tinyhat.train(data, out)``."""

from __future__ import annotations

from tinyhat.verb import make_callable

make_callable(__name__, "train")
