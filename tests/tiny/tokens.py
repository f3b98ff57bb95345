"""Files of tokens, as benchmarks/tokens.py writes them."""

from __future__ import annotations

import numpy as np

from tinyhat.data.reading import Reading
from tinyhat.data.tokens import save_tokens
from tinyhat.types import Targets

LABELS = 7


def write_tokens(path, tokenizer="", documents=40, highest=189):
    random = np.random.default_rng(0)
    splits = {}
    for name in ("train", "dev"):
        lengths = random.integers(4, 30, documents)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        ids = random.integers(5, 190, ends[-1]).astype(np.int32)
        ids[1] = highest
        counts = random.integers(1, 4, documents)
        labels = np.concatenate([np.sort(random.choice(LABELS, n, replace=False)) for n in counts])
        targets = Targets("multi", LABELS, labels, np.concatenate([[0], np.cumsum(counts)]))
        splits[name] = (Reading(ids, ends, lengths, lengths), targets)
    save_tokens(path, splits, tokenizer)
    return splits
