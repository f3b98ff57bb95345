"""Documents cut into sequences, and the plan that reads short ones first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tinyhat.data import sequences
from tinyhat.data.corpus import PART, hold_out, text_parts
from tinyhat.data.sequences import Curriculum, Sequences, TokenStream, encode_texts

FRAME = (1, 2)


def stream(*sizes):
    ids = np.arange(10, 10 + sum(sizes), dtype=np.int32)
    return TokenStream(ids, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


@given(st.lists(st.integers(0, 60), max_size=6), st.integers(3, 20), st.integers(1, 20))
def test_every_token_is_in_one_sequence_of_each_stage(sizes, short, more):
    text = stream(*sizes)
    sequences = Sequences(text, (short, short + more), FRAME)
    assert sum(sequences.counts) == len(sequences.lengths)
    begin = 0
    for count, length in zip(sequences.counts, (short, short + more), strict=True):
        rows = np.arange(begin, begin + count)
        ids, cu = sequences.tokens(rows)
        assert (np.diff(cu) <= length).all()
        assert (ids[cu[:-1]] == 1).all()
        assert (ids[cu[1:] - 1] == 2).all()
        assert np.array_equal(ids[ids >= 10], text.ids)  # all of them, in order
        # a document begins a sequence
        starts = {int(text.ids[b]) for b, e in zip(text.indptr[:-1], text.indptr[1:], strict=True) if e > b}
        assert starts <= {int(i) for i in ids[cu[:-1] + 1]}
        begin += count


def test_a_share_of_sequences_is_cut_short():
    sequences = Sequences(stream(*[50] * 2000), (52,), FRAME)
    rows = np.arange(2000)
    ids, cu = sequences.tokens(rows, 0.1, np.random.default_rng(0))
    lengths = np.diff(cu) - 2
    short = lengths < 50
    assert short.mean() == pytest.approx(0.1 * 49 / 50, abs=0.02)
    assert lengths.min() >= 1
    assert lengths[short].mean() == pytest.approx(25, abs=3)  # uniform
    assert (ids[cu[1:] - 1] == 2).all()
    assert (ids[cu[:-1] + 1] == sequences.stream.ids[::50]).all()  # what is left is the beginning


def curriculum(steps=10, world_size=1):
    sequences = Sequences(stream(*[300] * 40), (12, 42), FRAME)
    return sequences, Curriculum(
        sequences.lengths, sequences.counts, (12, 42), (0.8,), steps, 14, 100, seed=3, world_size=world_size
    )


def test_stages_follow_each_other_with_as_many_tokens():
    sequences, plan = curriculum()
    assert [plan.stage(step) for step in range(10)] == [0] * 8 + [1] * 2
    for step in range(10):
        batch = plan.batch(step)
        assert len(batch) == (14 if step < 8 else 4)  # 14 x 12 tokens, 4 x 42 tokens
        first = sequences.counts[0]
        assert (batch < first).all() if step < 8 else (batch >= first).all()
        packs = list(plan.packs(step))
        assert sorted(np.concatenate([rows for rows, counts in packs])) == sorted(batch)
        assert all(counts for _, counts in packs)
        assert all(sequences.lengths[rows].sum() <= 100 for rows, _ in packs)
    assert plan.epoch_of(0) == 0
    assert np.diff([plan.epoch_of(step) for step in range(11)]).min() > 0
    assert plan.epoch_of(8) == pytest.approx(8 * 14 / sequences.counts[0])


def test_the_plan_is_a_pure_function_and_ranks_share_a_step():
    _, plan = curriculum()
    _, again = curriculum()
    assert all(np.array_equal(plan.batch(step), again.batch(step)) for step in (9, 2, 8))
    _, both = curriculum(world_size=2)
    for step in (0, 9):
        shares = [list(both.packs(step, rank)) for rank in (0, 1)]
        assert len(shares[0]) == len(shares[1])
        rows = [r for share in shares for r, counts in share if counts]
        assert sorted(np.concatenate(rows)) == sorted(both.batch(step))


@given(st.text(alphabet="ab \n", max_size=400), st.integers(0, 3))
def test_parts_of_a_text_are_the_text(text, repeat):
    whole = text * (repeat * 300)
    assert "".join(text_parts(whole)) == whole


def test_parts_are_cut_between_words():
    whole = "one two three\n" * 9000
    parts = list(text_parts(whole))
    assert len(parts) > 3
    assert all(part.endswith("\n") for part in parts)
    assert max(map(len, parts)) <= 2 * PART


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.floats(0.01, 0.4), st.integers(0, 99))
def test_held_out_text_is_not_trained_on(sizes, share, seed):
    texts = [f"{i} ".ljust(5, "x") + "w " * n for i, n in enumerate(sizes)]
    train, validation = hold_out(texts, share, seed)
    total = sum(map(len, texts))
    held = sum(map(len, validation))
    assert sum(map(len, train)) + held == total
    assert held <= 1.6 * share * total + 10
    if share * total > 20:
        assert validation


@pytest.mark.parametrize("end", ["\n", "\n\n", " \n"])
def test_the_end_of_one_long_line_can_be_held_out(end):
    text = "one two three " * 300 + end
    train, validation = hold_out([text], 0.1, 0)
    assert train[0] + validation[0] == text
    assert 0.05 * len(text) < len(validation[0]) <= 0.1 * len(text) + 3
    assert validation[0].startswith(("one ", "two ", "three "))


def test_encoding_is_kept_and_a_damaged_cache_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = ["a b a", "", "b " * 40_000]
    first = encode_texts(texts, tokenizer)
    assert first.ids[:3].tolist() == [1, 2, 1]
    assert np.diff(first.indptr).tolist() == [3, 0, 40_000]
    file = next((tmp_path / "tokens").iterdir())
    monkeypatch.setattr(sequences, "_encode", pytest.fail)
    assert np.array_equal(encode_texts(texts, tokenizer).ids, first.ids)  # from the cache
    monkeypatch.undo()
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path))
    file.write_bytes(file.read_bytes()[:50])
    assert np.array_equal(encode_texts(texts, tokenizer).ids, first.ids)
    assert len(encode_texts(texts[:1], tokenizer).ids) == 3  # other texts are other tokens
