"""WordPiece tokenizers trained on a corpus, in the two flavours LTG-BERT was published with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tinyhat.types import BoolArray

Flavour = Literal["bnc", "babylm"]
FLAVOURS: tuple[Flavour, ...] = ("bnc", "babylm")
SPECIALS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[PAR]", "[TAB]")  # in the order of their ids
PREFIX = {"bnc": "@@", "babylm": ""}
MIN_FREQUENCY = {"bnc": 0, "babylm": 10}
# English clitics, as the Penn Treebank cuts them, single digits, and single marks
BNC_PARTS = r"n['’]t\b|['’](?:s|m|d|re|ve|ll)\b|\d|\p{P}|\p{S}"


def train_wordpiece(texts: Iterable[str], flavour: Flavour, vocabulary: int) -> Tokenizer:
    """Train a tokenizer of at most `vocabulary` entries; its ids begin with the special tokens (SPECIALS).

    bnc: normalised (NFKC, no accents, case kept), split at white space, clitics, marks and digits; pieces that continue
    a word begin with ``@@``. babylm: bytes, a space belongs to the word behind it, digits single, pieces without
    prefix, entries seen ten times at least; nothing is normalised or unknown. Both frame a text as ``[CLS] A [SEP] B
    [SEP]``. [PAR] and [TAB] are for texts that contain them in so many words. Samuel et al. 2023 and BabyLM's baseline.

    Args:
        texts: the corpus, in parts of any size.
        flavour: which of the two.
        vocabulary: entries, special ones included; a small corpus may give fewer.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=PREFIX[flavour]))
    if flavour == "bnc":
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Nmt(),
                normalizers.NFKC(),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.BertNormalizer(
                    clean_text=True, handle_chinese_chars=False, strip_accents=True, lowercase=False
                ),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(BNC_PARTS), "isolated")]
        )
        tokenizer.decoder = decoders.WordPiece(prefix="@@")
        alphabet = []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=MIN_FREQUENCY[flavour],
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        continuing_subword_prefix=PREFIX[flavour],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIALS.index("[CLS]")), ("[SEP]", SPECIALS.index("[SEP]"))],
    )
    return tokenizer


def word_starts(tokenizer: Tokenizer) -> BoolArray:
    """Return which entries begin a word, bool [V]; all others belong to the word before them.

    Where pieces carry a prefix (``@@``, ``##``) those with it continue a word. Where a word carries its space (byte
    level: Ġ) a piece continues unless it has the space or begins with a digit or a mark.
    """
    vocabulary = tokenizer.get_vocab()
    size = tokenizer.get_vocab_size()
    tokens = [""] * size
    for token, index in vocabulary.items():
        tokens[index] = token
    prefix = getattr(tokenizer.model, "continuing_subword_prefix", "")
    if prefix:
        return np.array([not token.startswith(prefix) for token in tokens])
    return np.array([not token[:1].isalpha() or token.startswith("Ġ") for token in tokens])
