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
PREFIX = "@@"  # of pieces that continue a word, bnc
MARK = "▁"  # before every word while bnc is trained
ALPHABET = 1000  # most characters bnc knows
BYTE_LEVEL_SPACES = tuple(chr(256 + byte) for byte in b"\t\n\v\f\r ")  # how byte level writes white space: Ċ, Ġ ...
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
    tokenizer = _train_bnc(texts, vocabulary) if flavour == "bnc" else _train_babylm(texts, vocabulary)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIALS.index("[CLS]")), ("[SEP]", SPECIALS.index("[SEP]"))],
    )
    return tokenizer


def _train_bnc(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn merges on words that begin with a mark, and write them as pieces with and without prefix.

    The library's own trainer numbers prefixed characters in the order of a hash table, so that ties fall differently in
    every process; here one corpus gives one tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
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
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(BNC_PARTS), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.Metaspace(MARK, prepend_scheme="always", split=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, limit_alphabet=ALPHABET, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    learnt = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    characters = [token for token, _ in learnt if len(token) == 1 and token != MARK]
    merged = [token for token, _ in learnt if len(token) > 1]
    pieces = [token.removeprefix(MARK) if token.startswith(MARK) else PREFIX + token for token in merged]
    entries = dict.fromkeys([*SPECIALS, *characters, *(PREFIX + c for c in characters), *pieces])
    ids = {token: i for i, token in enumerate(list(entries)[:vocabulary])}
    tokenizer.model = models.WordPiece(ids, unk_token="[UNK]", continuing_subword_prefix=PREFIX)
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _train_babylm(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=10,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        continuing_subword_prefix="",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_starts(tokenizer: Tokenizer) -> BoolArray:
    """Return which entries begin a word, bool [V]; all others belong to the word before them.

    Where pieces carry a prefix (``@@``, ``##``) those with it continue a word. Where a word carries its space (byte
    level: Ġ, and Ċ for the end of a line) a piece continues unless it has white space or begins with a digit or a mark.
    """
    vocabulary = tokenizer.get_vocab()
    size = tokenizer.get_vocab_size()
    tokens = [""] * size
    for token, index in vocabulary.items():
        tokens[index] = token
    prefix = getattr(tokenizer.model, "continuing_subword_prefix", "")
    if prefix:
        return np.array([not token.startswith(prefix) for token in tokens])
    return np.array([not token[:1].isalpha() or token[0] in BYTE_LEVEL_SPACES for token in tokens])
