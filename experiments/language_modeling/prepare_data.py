"""Novels to token ids, with a byte-level BPE trained on them (GPT-2's own needs the hub).

python experiments/language_modeling/prepare_data.py [--source PATH] [--out data/eltec_eng] [--vocabulary 50257]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tinyhat.config import DataConfig
from tinyhat.data.corpus import read_texts
from tinyhat.errors import UserError
from tinyhat.run import atomic_path, write_json
from tinyhat.train.grid import require_counts, require_folder

HELD_OUT = 0.1  # share of the characters that is validation: whole novels, and the end of one


def main() -> None:
    """Train the tokenizer on the training novels and write train.npy, validation.npy, meta.json, tokenizer.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/eltec_eng"), help="table, txt or folder")
    parser.add_argument("--out", type=Path, default=Path("data/eltec_eng"))
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--characters", type=int, help="read at most so many characters of each novel")
    parser.add_argument("--limit", type=int, help="read at most N novels")
    options = parser.parse_args()
    try:
        require_counts(options, ("characters", "limit"))
        prepare(options.source, options.out, options.vocabulary, options.characters, options.limit)
    except UserError as error:
        print(f"experiments/language_modeling/prepare_data.py: {error}", file=sys.stderr)
        sys.exit(2)


def prepare(source: Path, out: Path, vocabulary: int, characters: int | None, limit: int | None) -> None:
    """Do it.

    Raises:
        UserError: no text there, or ids that do not fit into 16 bits.
    """
    if not 257 <= vocabulary <= 1 << 16:
        raise UserError(f"--vocabulary {vocabulary} is not between 257 (all bytes and the end) and 65,536 (16 bits)")
    require_folder(out)
    corpus = read_texts(DataConfig(path=str(source), limit=limit), HELD_OUT, 0)
    texts = {
        name: [text[:characters] for text in part]
        for name, part in (("train", corpus.train), ("validation", corpus.validation))
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts["train"], trainer)
    for name, novels in texts.items():
        ids = [np.array([0, *e.ids], np.uint16) for e in tokenizer.encode_batch_fast(novels)]
        with atomic_path(out / f"{name}.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, np.concatenate(ids))
        print(f"{name}: {len(novels)} novels, {sum(map(len, ids)):,} tokens")
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "meta.json", {"vocabulary": tokenizer.get_vocab_size(), "source": str(source)})


if __name__ == "__main__":
    main()
