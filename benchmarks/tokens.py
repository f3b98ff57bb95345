"""Write tokenised EURLEX57K into one small file, for machines that have neither the texts nor a tokenizer.

    python benchmarks/tokens.py OUT.xz [--source ../shared/data/eurlex57k] [--train 12000] [--dev 1000]

`benchmarks/gpu.py --tokens OUT.xz` and `experiments/classification/run.py --tokens OUT.xz` read it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from results import one_sentence

from tinyhat.config import DataConfig, ReadingConfig
from tinyhat.data.read import read_dataset
from tinyhat.data.reading import Reader
from tinyhat.data.tokens import save_tokens, tokenizer_hash
from tinyhat.encoder.load import load_tokenizer


def main() -> None:
    """Tokenise a seeded sample of both splits and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--source", default="../shared/data/eurlex57k", help="EURLEX57K: folder or zip")
    parser.add_argument("--model", default="minilm", help="whose tokenizer")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--train", type=int, default=12000, help="documents of the train split")
    parser.add_argument("--dev", type=int, default=1000, help="documents of the dev split")
    options = parser.parse_args()
    with one_sentence("tokens"):
        dataset = read_dataset(DataConfig(path="eurlex57k", source=options.source), 0)
        tokenizer = load_tokenizer(options.model)
        reader = Reader(tokenizer, ReadingConfig(max_tokens=options.max_tokens))
        splits = {}
        for name, count in (("train", options.train), ("dev", options.dev)):
            split = dataset.splits[name]
            rows = np.sort(np.random.default_rng(0).permutation(len(split))[:count])
            sample = split.take(rows)
            splits[name] = (reader.read(sample.texts), sample.targets)
        save_tokens(options.out, splits, tokenizer_hash(tokenizer))
    for name, (reading, _) in splits.items():
        print(f"{name}: {len(reading):,} documents, mean {reading.lengths.mean():.0f} tokens")
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
