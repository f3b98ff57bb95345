"""Tokenizers in the two published flavours."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from tinyhat.data.wordpiece import FLAVOURS, SPECIALS, train_wordpiece, word_starts

TEXT = ["The cat doesn't like 1984 fishes, or élan at home.\nHere it's fishing\tin the market  of cats"] * 30


@pytest.fixture(scope="module", params=FLAVOURS)
def trained(request):
    return request.param, train_wordpiece(TEXT, request.param, 400)


def test_special_tokens_have_the_published_ids(trained):
    _, tokenizer = trained
    ids = [tokenizer.token_to_id(t) for t in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[PAR]", "[TAB]")]
    assert ids == list(range(7))
    assert len(SPECIALS) == 7
    assert tokenizer.get_vocab_size() <= 400


def test_texts_and_pairs_are_framed(trained):
    _, tokenizer = trained
    one, two = tokenizer.encode("cat"), tokenizer.encode("cat", "fishes")
    assert one.tokens[0] == "[CLS]"
    assert one.tokens[-1] == "[SEP]"
    assert [t for t in two.tokens if t.startswith("[")] == ["[CLS]", "[SEP]", "[SEP]"]
    assert set(two.type_ids) == {0, 1}
    assert two.type_ids[-1] == 1


def test_bnc_normalises_and_marks_what_continues():
    tokenizer = train_wordpiece(TEXT, "bnc", 400)
    tokens = tokenizer.encode("The cat doesn't\tlike\n1984 élans, it's", add_special_tokens=False).tokens
    assert tokens == ["The", "cat", "does", "n't", "like", "1", "9", "8", "4", "elan", "@@s", ",", "it", "'s"]
    assert tokenizer.encode("日", add_special_tokens=False).tokens == ["[UNK]"]
    starts = word_starts(tokenizer)
    assert not starts[tokenizer.token_to_id("@@s")]
    assert starts[tokenizer.token_to_id("cat")]


def test_babylm_reads_any_byte_and_keeps_spaces():
    tokenizer = train_wordpiece(TEXT, "babylm", 400)
    text = " the cat's 日本  élan\n1984\tx"
    encoding = tokenizer.encode(text, add_special_tokens=False)
    assert "[UNK]" not in encoding.tokens
    assert tokenizer.decode(encoding.ids) == text
    assert {"1", "9", "8", "4"} <= set(encoding.tokens)
    starts = word_starts(tokenizer)
    assert starts[tokenizer.token_to_id("Ġcat")]
    assert not starts[tokenizer.token_to_id("s")]
    assert starts[tokenizer.token_to_id(",")]
    assert starts[tokenizer.token_to_id("7")]
    assert starts[tokenizer.token_to_id("Ċ")]  # the end of a line goes with the word behind it, as a space does
    assert starts[tokenizer.token_to_id("ĉ")]
    assert not any(token.startswith("##") for token in tokenizer.get_vocab())


def test_one_corpus_gives_one_tokenizer_in_every_process(trained):
    # the library's trainer breaks ties by a hash order that changes from process to process
    flavour, tokenizer = trained
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.data.test_wordpiece import TEXT;"
        "from tinyhat.data.wordpiece import train_wordpiece;"
        f"sys.stdout.write(train_wordpiece(TEXT, {flavour!r}, 400).to_str())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8")
    assert done.stdout == tokenizer.to_str()


def test_bnc_splits_words_as_its_merges_do():
    # fish is one piece wherever it stands, and a vocabulary without room knows characters
    tokenizer = train_wordpiece(TEXT, "bnc", 60)
    assert tokenizer.get_vocab_size() == 60
    assert tokenizer.encode("fishing", add_special_tokens=False).tokens != ["[UNK]"]
    large = train_wordpiece(TEXT, "bnc", 400)
    assert large.encode("fishes fishing", add_special_tokens=False).tokens[0] == "fishes"


def test_it_survives_being_written(trained):
    _, tokenizer = trained
    copy = Tokenizer.from_str(tokenizer.to_str())
    assert copy.encode(TEXT[0]).ids == tokenizer.encode(TEXT[0]).ids
    assert (word_starts(copy) == word_starts(tokenizer)).all()
