"""Embeddings: any layer, any aggregation, any amount, in files that last."""

from tinyhat.verb import make_callable

make_callable(__name__, "embed", "tinyhat.scale.embed")
