"""Reading gives the ids that the Hugging Face tokenizer gives, counts what it cuts, and may lose its cache."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny.models import tiny_tokenizer

from tinyhat.config import ReadingConfig
from tinyhat.data.reading import Reader, cache_folder, choose_tokens
from tinyhat.errors import UserError

STRATEGIES = ("head", "tail", "head_tail", "middle")
TEXTS = ["the quick brown fox " * 9, "", "law and order", "one [SEP] two " * 12]


def sequence(reading, i):
    return reading.input_ids[reading.indptr[i] : reading.indptr[i + 1]].tolist()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("max_tokens", [8, 16, 512])
def test_head_equals_the_tokenizers_own_truncation(kind, max_tokens):
    tokenizer = tiny_tokenizer(kind)
    reader = Reader(tokenizer.backend_tokenizer, ReadingConfig(max_tokens=max_tokens))
    expected = tokenizer(TEXTS, truncation=True, max_length=max_tokens)["input_ids"]
    reading = reader.read(TEXTS)
    assert [sequence(reading, i) for i in range(len(TEXTS))] == expected


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_pairs_equal_the_tokenizers_own_longest_first(kind):
    tokenizer = tiny_tokenizer(kind)
    reader = Reader(tokenizer.backend_tokenizer, ReadingConfig(max_tokens=16))
    others = ["a short one", "law " * 30, "order " * 30, ""]
    expected = tokenizer(TEXTS, others, truncation=True, max_length=16)
    reading = reader.read(TEXTS, others)
    assert [sequence(reading, i) for i in range(4)] == expected["input_ids"]
    if "token_type_ids" in expected:
        kinds = [reading.token_type_ids[a:b].tolist() for a, b in zip(reading.indptr, reading.indptr[1:], strict=False)]
        assert kinds == expected["token_type_ids"]


@given(st.integers(0, 60), st.integers(1, 30), st.sampled_from(STRATEGIES), st.floats(0, 1))
def test_every_strategy_fills_the_room_in_order(length, room, strategy, ratio):
    chosen = choose_tokens(length, room, ReadingConfig(strategy=strategy, head_ratio=ratio))
    assert len(chosen) == min(length, room)
    assert (np.diff(chosen) > 0).all()
    assert chosen.min(initial=0) >= 0
    assert chosen.max(initial=0) < max(length, 1)


def test_strategies_read_where_they_say():
    pick = {s: choose_tokens(10, 4, ReadingConfig(strategy=s)).tolist() for s in STRATEGIES}
    assert pick == {"head": [0, 1, 2, 3], "tail": [6, 7, 8, 9], "head_tail": [0, 7, 8, 9], "middle": [3, 4, 5, 6]}


def test_what_was_cut_is_counted_without_special_tokens():
    tokenizer = tiny_tokenizer("wordpiece")
    reading = Reader(tokenizer.backend_tokenizer, ReadingConfig(max_tokens=8)).read(TEXTS)
    total = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS]
    assert reading.tokens_total.tolist() == total
    assert reading.tokens_read.tolist() == [min(n, 6) for n in total]


def test_offsets_point_into_the_text():
    tokenizer = tiny_tokenizer("wordpiece")
    reader = Reader(tokenizer.backend_tokenizer, ReadingConfig(max_tokens=8, strategy="tail"))
    reading = reader.read(TEXTS, offsets=True)
    begin, end = reading.indptr[0], reading.indptr[1]
    words = [TEXTS[0][a:b] for a, b in reading.offsets[begin + 1 : end - 1]]
    assert "".join(words) == TEXTS[0].strip().replace(" ", "")[-len("".join(words)) :]


def test_the_cache_gives_the_same_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path))
    reader = Reader(tiny_tokenizer("wordpiece").backend_tokenizer, ReadingConfig(max_tokens=16))
    first = reader.read_cached(TEXTS)
    (path,) = (cache_folder() / "tokens").iterdir()
    assert reader.read_cached(TEXTS).input_ids.tolist() == first.input_ids.tolist()
    path.write_bytes(path.read_bytes()[:40])
    assert reader.read_cached(TEXTS).input_ids.tolist() == first.input_ids.tolist()
    reader.read_cached(TEXTS[:2])
    assert len(list((cache_folder() / "tokens").iterdir())) == 2


def test_no_room_beside_the_special_tokens_is_a_mistake():
    config = ReadingConfig.model_construct(max_tokens=3, strategy="head", head_ratio=0.25)
    with pytest.raises(UserError, match="leaves no room"):
        Reader(tiny_tokenizer("wordpiece").backend_tokenizer, config)
